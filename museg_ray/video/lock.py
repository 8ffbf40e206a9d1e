"""Locks between processes, a file each: one process prepares a clip while others wait for it, though never for long.

Invariant: a lock saves work and guards nothing. Entries of the store are written under names of their own and renamed,
so two processes may prepare the same clip at once. Hence nobody loses a video to a holder that hangs, is stopped, or is
gone while a server still keeps its lock: who has waited long enough goes on without.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from museg_ray.files import partial_path
from museg_ray.video.folder import Access, own_storage

POLL_S = 0.05
NAMED_AFTER_S = 10.0
"""Whoever is waited for so long is named."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that has a lock, as its file tells."""

    pid: int
    host: str
    start: str
    """When it was started, as its machine counts: process ids are used again."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_gone(self) -> bool:
        """False of one on another machine: nobody can tell."""
        return self.host == socket.gethostname() and _start_of(self.pid) != self.start


@contextmanager
def file_lock(
    path: Path, access: Access, patience_s: float, on_wait: Callable[[], None], tell: Callable[[str], None]
) -> Iterator[bool]:
    """Held by one process, and given back by the kernel however that one ends; or gone on without, where its holder is
    gone, or has been waited for long enough.

    Args:
        patience_s: so long.
        on_wait: called once, before it waits.
        tell: is told whom it waits for once that takes long, and whom it did not wait for any longer.

    Yields:
        Whether it had to tell.

    Raises:
        ResourceError: the folder cannot be used.
    """
    file, has_told = _acquired(path, access, patience_s, on_wait, tell)
    try:
        yield has_told
    finally:
        if file is not None:
            with suppress(OSError):  # what stays is in nobody's way
                path.unlink()
            file.close()


def _acquired(
    path: Path, access: Access, patience_s: float, on_wait: Callable[[], None], tell: Callable[[str], None]
) -> tuple[BinaryIO | None, bool]:
    if file := _take(path, access):
        return file, False
    on_wait()
    start_s, holder, was_named = time.monotonic(), _holder(path), False
    while (file := _take(path, access)) is None:
        holder = _holder(path) or holder
        waited_s = time.monotonic() - start_s
        whom = f"{holder or 'another process'}, which has its lock"
        if waited_s >= patience_s or (holder and holder.is_gone()):
            tell(f"waited {waited_s:.0f} s for {whom}, and is read without it")
            return None, True
        if waited_s >= NAMED_AFTER_S and not was_named:
            tell(f"waits for {whom}, for {patience_s:g} s at most")
            was_named = True
        time.sleep(POLL_S)
    return file, was_named


def _take(path: Path, access: Access) -> BinaryIO | None:
    """The locked file; None where another one has it.

    Invariant: only who holds the lock of a file deletes it. Who opened it before that has the lock of a file that
    is no longer there: without a second look, two would hold one lock.
    """
    with own_storage(path.parent):  # there are file systems without locks
        try:
            with path.open("r+b") as found:
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(found.fileno()), path.stat()):
                    return None
                path.unlink()  # of a process that was killed
        except FileNotFoundError:
            pass
        except BlockingIOError:
            return None
        return _make(path, access)


def _make(path: Path, access: Access) -> BinaryIO | None:
    """The file appears with all it needs: locked, its holder in it, and open to whom it may be."""
    partial = partial_path(path)
    file = access.new_file(partial)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(f"{os.getpid()} {socket.gethostname()} {_start_of(os.getpid())}".encode())
        file.flush()
        os.link(partial, path)
        return file
    except OSError as error:
        file.close()
        if isinstance(error, FileExistsError):  # another one was faster
            return None
        raise
    finally:
        partial.unlink(missing_ok=True)


def _holder(path: Path) -> Holder | None:
    """None where it has just let go, or a lost write left nothing."""
    with suppress(OSError, ValueError):
        pid, host, start = path.read_text().split()
        return Holder(int(pid), host, start)
    return None


def _start_of(pid: int) -> str:
    """Empty of a process that is not there."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
