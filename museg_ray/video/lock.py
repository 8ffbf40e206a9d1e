"""Locks between processes, a file each: one process prepares a clip while others wait for it, though never for long.

Invariant: a lock saves work and guards nothing. Entries of the store are written under names of their own and renamed,
so two processes may prepare the same clip at once. Hence nobody loses a video to a holder that hangs, is stopped, or is
gone while a server still keeps its lock: who has waited long enough goes on without.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from museg_ray.files import partial_path
from museg_ray.video.access import Access
from museg_ray.video.folder import own_storage

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


class FileLock:
    """Held by one process, and given back by the kernel however that one ends. For one use."""

    def __init__(self, path: Path, access: Access) -> None:
        self._path, self._access = path, access
        self._file: BinaryIO | None = None

    def acquire(self, patience_s: float, on_wait: Callable[[], None], tell: Callable[[str], None]) -> bool:
        """Take the lock, or go on without: where its holder is gone, or has been waited for long enough.

        Args:
            patience_s: so long.
            on_wait: called once, before it waits.
            tell: is told whom it waits for once that takes long, and whom it did not wait for any longer.

        Returns:
            Whether it had to tell.

        Raises:
            ResourceError: the folder cannot be used.
        """
        if self._take():
            return False
        on_wait()
        start_s, holder, was_named = time.monotonic(), self._holder(), False
        while not self._take():
            holder = self._holder() or holder
            waited_s = time.monotonic() - start_s
            whom = f"{holder or 'another process'}, which has its lock"
            if waited_s >= patience_s or (holder and holder.is_gone()):
                tell(f"waited {waited_s:.0f} s for {whom}, and is read without it")
                return True
            if waited_s >= NAMED_AFTER_S and not was_named:
                tell(f"waits for {whom}, for {patience_s:g} s at most")
                was_named = True
            time.sleep(POLL_S)
        return was_named

    def release(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # what stays is in nobody's way
                self._path.unlink()
            self._file.close()

    def _take(self) -> bool:
        """Take it if nobody has it.

        Invariant: only who holds the lock of a file deletes it. Who opened it before that has the lock of a file that
        is no longer there: without a second look, two would hold one lock.
        """
        with own_storage(self._path.parent):  # there are file systems without locks
            try:
                with self._path.open("r+b") as found:
                    fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not os.path.samestat(os.fstat(found.fileno()), self._path.stat()):
                        return False
                    self._path.unlink()  # of a process that was killed
            except FileNotFoundError:
                pass
            except BlockingIOError:
                return False
            return self._make()

    def _make(self) -> bool:
        """Its file appears with all it needs: locked, its holder in it, and open to whom it may be."""
        partial = partial_path(self._path)
        file = self._access.new_file(partial)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(f"{os.getpid()} {socket.gethostname()} {_start_of(os.getpid())}".encode())
            file.flush()
            os.link(partial, self._path)
            self._file = file
        except FileExistsError:  # another one was faster
            return False
        finally:
            partial.unlink(missing_ok=True)
            if self._file is None:
                file.close()
        return True

    def _holder(self) -> Holder | None:
        """None where it has just let go, or a lost write left nothing."""
        with suppress(OSError, ValueError):
            pid, host, start = self._path.read_text().split()
            return Holder(int(pid), host, start)
        return None


def _start_of(pid: int) -> str:
    """Empty of a process that is not there."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
