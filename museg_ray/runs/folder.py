"""A run's folder: for one run only, in one process at a time, and its files written atomically.

Invariant: in a folder that was not empty when a run made its `museg-run.json` there nothing is written, deleted or
renamed. Else a wrong path would cost a person the work of months.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any
from uuid import uuid4

from museg_ray.errors import ResourceError
from museg_ray.files import check_regular, free_path, is_partial, whole_file

MARKER_FILE, MARKER_FORMAT = "museg-run.json", 1
"""Made first: by it a folder is known as a run's, and its checkpoints as this run's."""
LOCK_FILE = "run.lock"
LIBRARIES_LOG = "ray.log"
"""What Ray and other libraries print: the first that a run writes after the lock."""
MAX_RUNS_A_SECOND = 100


def make_run_folder(parent: Path, name: str) -> Path:
    """The folder of one run, with its marker; made where it is not there.

    With an empty `name` it is a new one, named by the time; runs that start in the same second get different ones.

    Raises:
        ResourceError: it cannot be made, or holds what no run has made.
    """
    parent = parent.expanduser().resolve()
    folder = parent / name
    try:
        if name:
            folder.resolve().mkdir(parents=True, exist_ok=True)  # a link that leads to nothing gets its folder
        else:
            folder = _timed_folder(parent)
        if not _is_marked(folder):
            _mark(folder)
    except OSError as error:
        raise ResourceError(
            f"Cannot create the run folder {folder}: {error.strerror}. Set run.dir to a folder you can write to."
        ) from error
    return folder


def read_run_id(folder: Path) -> str:
    """What the run is known by, wherever its folder is moved; its copies are known by the same.

    Raises:
        ResourceError: the marker cannot be read, or is of another format.
    """
    return str(_read_marker(folder)["run_id"])


def is_original(folder: Path) -> bool:
    """True of the folder that the run began in, also where it was moved within its file system, or is mounted elsewhere
    or on another machine: its inode stays. False of a copy, which has its own."""
    return _read_marker(folder).get("inode") == folder.stat().st_ino


def _read_marker(folder: Path) -> dict[str, Any]:
    try:
        check_regular(folder / MARKER_FILE)
        marker: dict[str, Any] = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
        form, _ = marker["format"], marker["run_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResourceError(
            f"{folder / MARKER_FILE} cannot be read ({type(error).__name__}: {error}): restore it, or choose another "
            "run.name."
        ) from None
    if form != MARKER_FORMAT:
        raise ResourceError(
            f"{folder} holds a run of format {form}; this version of museg_ray goes on with format {MARKER_FORMAT}."
        )
    return marker


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process from opening the run, on whatever machine that shares the folder.

    A record lock and no `flock`: it belongs to this process alone and ends with it, however it ends. A `flock` is
    inherited by forked children, and one that outlives a killed run for a moment would keep it from being resumed.

    Raises:
        ResourceError: another process has it.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        file = os.fdopen(descriptor, "r+", encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"Cannot write to the run folder {folder}: {error.strerror}.") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise ResourceError(
                f"Another process ({file.read().strip() or 'unknown'}) is writing to the run folder {folder}. Wait for "
                "its end or stop it, or choose another run.name."
            ) from None
        except OSError as error:
            raise ResourceError(
                f"The run folder {folder} cannot be locked: {error.strerror}. Set run.dir to storage that has locks."
            ) from error
        _check_lock_file(folder, file.fileno())
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _check_lock_file(folder: Path, descriptor: int) -> None:
    """
    Raises:
        ResourceError: it is no file of the run's alone, or no longer that of this folder.
    """
    mine, path = os.fstat(descriptor), folder / LOCK_FILE
    if not S_ISREG(mine.st_mode) or mine.st_nlink > 1:
        raise ResourceError(f"{path} is no file of the run's own, and would be overwritten: remove it.")
    if not path.exists() or not os.path.samestat(mine, path.stat()):
        raise ResourceError(f"The run in {folder} was moved aside by another start at this moment: start again.")


def is_unused(folder: Path) -> bool:
    """True of a folder in which no run has begun: one that was killed at its very start leaves marker, lock and log."""
    beginnings = (MARKER_FILE, LOCK_FILE, LIBRARIES_LOG)
    return all(path.name in beginnings or is_partial(path.name) for path in folder.iterdir())


def move_aside(folder: Path) -> Path:
    """Rename a run's folder as a whole; where it is now. A link to it stays, and leads to nothing.

    Raises:
        ResourceError: it cannot be renamed.
    """
    folder = folder.resolve()
    aside = free_path(folder.with_name(f"{folder.name}.aside"))
    try:
        return folder.rename(aside)
    except OSError as error:
        raise ResourceError(f"{folder} cannot be moved aside to {aside}: {error.strerror}.") from error


def _is_marked(folder: Path) -> bool:
    """False also of a marker without content in an otherwise unused folder: who made it was killed before it wrote."""
    marker = folder / MARKER_FILE
    return marker.exists() and not (marker.is_file() and not marker.stat().st_size and is_unused(folder))


def _mark(folder: Path) -> None:
    marker = folder / MARKER_FILE
    if marker.is_file():
        marker.unlink()
    if any(not is_partial(path.name) for path in folder.iterdir()):
        raise ResourceError(
            f"The folder {folder} is not empty and no run of museg_ray: it has no {MARKER_FILE}. Nothing in it was "
            "touched. Choose another run.name or run.dir."
        )
    content = json.dumps({"format": MARKER_FORMAT, "run_id": uuid4().hex, "inode": folder.stat().st_ino}) + "\n"
    with suppress(FileExistsError), marker.open("x", encoding="utf-8") as file:
        file.write(content)  # exclusive: of two that start at once both must read one id


def _timed_folder(parent: Path) -> Path:
    stamp = time.strftime("run-%Y%m%d-%H%M%S")
    for attempt in range(1, MAX_RUNS_A_SECOND):
        folder = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)  # exclusive: a run that starts in the same second takes the next name
            return folder
    raise ResourceError(f"{MAX_RUNS_A_SECOND} runs started in {parent} within one second; set run.name.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
