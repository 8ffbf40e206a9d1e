"""One private folder for everything temporary of a run on a Ray of its own.

    /tmp/museg-UID-xxxxxxxx/    0700: no other user can list it
        lock                    held by the driver for as long as it lives
        token                   0600: whoever has it may use the run's Ray
        ray/                    Ray's sessions: sockets, logs, spilled objects
        …                       TMPDIR of all processes of the run: vLLM's sockets and the like

It goes with the run. What a killed run has left goes when the next one starts.
"""

import fcntl
import multiprocessing
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = f"museg-{os.getuid()}-"
LOCK_FILE = "lock"
SEMAPHORES_DIR = Path("/dev/shm")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """The folder for a run that starts now; deleted at the end of the block.

    Raises:
        OSError: it cannot be made.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    remove_dead(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    # Locked before it has the name that others look for: else they could take the folder for a dead run's.
    with (folder / "new").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        (folder / "new").rename(folder / LOCK_FILE)
        try:
            yield folder
        finally:
            _remove(folder)


def remove_dead(base: Path) -> None:
    """Delete the folders of runs whose driver is dead: of this user, not through a link, with a lock that is free.

    The lock is a record lock: it belongs to the driver alone and ends with it, however that ends, and no other process
    can be taken for the driver as by a number that is used again.
    """
    for folder in base.glob(f"{PREFIX}*"):
        entry = folder.lstat()
        if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.getuid():
            continue
        # Where that fails it is not one of ours, is just being made, or its driver lives.
        with suppress(OSError), os.fdopen(os.open(folder / LOCK_FILE, os.O_RDWR | os.O_NOFOLLOW)) as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def name_semaphores() -> None:
    """Have this process and its children name their semaphores after the run's folder, if it has one.

    A semaphore lies in /dev/shm under a random name, and stays there when its process is killed.
    """
    name = Path(tempfile.gettempdir()).name
    if name.startswith(PREFIX):
        multiprocessing.current_process()._config["semprefix"] = f"/{name}"  # type: ignore[attr-defined]


def _remove(folder: Path) -> None:
    for semaphore in SEMAPHORES_DIR.glob(f"sem.{folder.name}-*"):
        semaphore.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # a process of the run's that is just ending may still write there
