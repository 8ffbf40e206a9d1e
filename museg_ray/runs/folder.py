"""A run's folder: for one run only, in one process at a time, and its files written atomically."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from museg_ray.errors import ResourceError
from museg_ray.files import whole_file

LOCK_FILE = "run.lock"
LIBRARIES_LOG = "ray.log"
"""What Ray and other libraries print: the first that a run writes after the lock."""
MAX_RUNS_A_SECOND = 100


def make_run_folder(parent: Path, name: str) -> Path:
    """The folder of one run, made where it is not there.

    With an empty `name` it is a new one, named by the time; runs that start in the same second get different ones.

    Raises:
        ResourceError: it cannot be made.
    """
    parent = parent.expanduser().resolve()
    try:
        if not name:
            return _timed_folder(parent)
        (parent / name).mkdir(parents=True, exist_ok=True)
        return parent / name
    except OSError as error:
        raise ResourceError(
            f"Cannot create the run folder {parent / name}: {error.strerror}. Set run.dir to a folder you can write to."
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process from opening the run, on whatever machine that shares the folder.

    A record lock and no `flock`: it belongs to this process alone and ends with it, however it ends. A `flock` is
    inherited by forked children, and one that outlives a killed run for a moment would keep it from being resumed.

    Raises:
        ResourceError: another process has it.
    """
    try:
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
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
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def is_empty(folder: Path) -> bool:
    """True of a folder in which no run has begun: one that was killed at its very start leaves lock and log alone."""
    names = [path.name for path in folder.iterdir()]
    return all(name in (LOCK_FILE, LIBRARIES_LOG) or name.startswith(".config.yaml.") for name in names)


def require_empty(folder: Path) -> None:
    """
    Raises:
        ResourceError: it holds something.
    """
    if not is_empty(folder):
        raise not_empty(folder)


def not_empty(folder: Path) -> ResourceError:
    """For a folder that holds something which this run may not touch."""
    is_run = (folder / "config.yaml").is_file()
    remedy = "Go on with that run by --resume (run.resume=true)" if is_run else "It holds no run that could be resumed"
    return ResourceError(
        f"The run folder {folder} is not empty; a run never writes into another's folder. {remedy}, or choose another "
        "one, or remove it."
    )


def _timed_folder(parent: Path) -> Path:
    stamp = time.strftime("run-%Y%m%d-%H%M%S")
    for attempt in range(1, MAX_RUNS_A_SECOND):
        folder = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)  # exclusive: a run that starts in the same second takes the next name
            return folder
        except FileExistsError:
            continue
    raise ResourceError(f"{MAX_RUNS_A_SECOND} runs started in {parent} within one second; set run.name.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
