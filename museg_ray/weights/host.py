"""One machine's weights files: in its memory, or in a folder; two at most.

                 ranks of this machine            engines of this machine
                          │ fill                        │ map, and copy to their device
                          ▼                             ▼
    other machines ─▶ the next version   ─commit─▶   the version that serves   ─▶ other machines

Invariant: a file is filled anew only while nobody reads it, and says its version only while it is whole. Without the
first an engine could load half of one version and half of the next; without the second it would take what a writer that
died has left for weights.
"""

import fcntl
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import BinaryIO

import psutil

from museg_ray.errors import ResourceError
from museg_ray.weights.file import held, stamp
from museg_ray.weights.layout import Layout
from museg_ray.weights.spans import Span
from museg_ray.weights.transfer import Address, Server, fetch

GIB = 1024**3
NUM_FILES = 2
POLL_S = 0.01
CGROUP = Path("/sys/fs/cgroup")
"""Of the container that the process is in."""


class WeightHost:
    """Holds the files for as long as it lives. They have no names, which a killed process could leave behind: others
    open them by a path that leads through this process."""

    def __init__(self, folder: str = "", host: str = "127.0.0.1") -> None:
        """
        Args:
            folder: on a disk of this machine; empty: its memory.
            host: the address by which other machines reach this one.
        """
        self._folder, self._host = folder, host
        self._layout: Layout | None = None
        self._files: list[BinaryIO] = []
        self._versions: list[int | None] = [None] * NUM_FILES
        """What each has, or is being filled with."""
        self._serving = NUM_FILES - 1
        """The one that is whole; the other one is next."""
        self._server: Server | None = None

    def reserve(self, layout: Layout) -> None:
        """Take the room for both files, so that every push finds it.

        Raises:
            ResourceError: there is none.
        """
        if self._layout is None:
            self._check_room(NUM_FILES * layout.size_bytes)
            self._layout = layout
            self._files = [self._make_file() for _ in range(NUM_FILES)]
        assert self._layout == layout, "the policy has other weights than before"

    def begin(self, version: int, patience_s: float) -> Path:
        """The file for a version that is about to be written. The other one stays as it is. Where somebody still reads
        it after `patience_s` it is left to them, and another one made."""
        index = self._next
        if not _is_locked(self._files[index], patience_s):
            stuck, self._files[index] = self._files[index], self._make_file()
            stuck.close()
        stamp(self._files[index].fileno(), None)
        self._versions[index] = version
        return self._path(index)

    def fetch(self, version: int, spans: Mapping[Address, Sequence[Span]]) -> int:
        """Fill the file that `begin` gave with what other machines have; how many bytes came.

        Raises:
            WeightsLostError: one of them does not have it, or does not answer.
        """
        assert self._layout is not None
        target = memoryview(mmap.mmap(self._files[self._next].fileno(), self._layout.size_bytes))
        with ThreadPoolExecutor(max(1, len(spans))) as threads:
            calls = [threads.submit(fetch, address, version, wanted, target) for address, wanted in spans.items()]
            return sum(call.result() for call in calls)

    def commit(self, version: int) -> None:
        """The file that `begin` gave is whole, and serves from now on."""
        index = self._next
        assert self._versions[index] == version, f"weights {version} were not begun"
        stamp(self._files[index].fileno(), version)
        fcntl.flock(self._files[index], fcntl.LOCK_UN)
        self._serving = index

    def address(self) -> Address:
        """Where other machines get what this one has."""
        if self._server is None:
            self._server = Server(self._host, self._giving)
        return self._server.address

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for file in self._files:
            file.close()

    @property
    def _next(self) -> int:
        return NUM_FILES - 1 - self._serving

    def _path(self, index: int) -> Path:
        return Path(f"/proc/{os.getpid()}/fd/{self._files[index].fileno()}")

    @contextmanager
    def _giving(self, version: int) -> Iterator[BinaryIO]:
        index = self._versions.index(version)
        with held(self._path(index), version) if index == self._serving else nullcontext():
            yield self._files[index]

    def _make_file(self) -> BinaryIO:
        assert self._layout is not None
        if self._folder:
            file: BinaryIO = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by `close`)
        else:
            file = os.fdopen(os.memfd_create("museg-weights"), "w+b", buffering=0)
        os.posix_fallocate(file.fileno(), 0, self._layout.size_bytes)
        os.pwrite(file.fileno(), self._layout.header, 0)
        _is_locked(file, 0.0)
        return file

    def _check_room(self, size_bytes: int) -> None:
        where, free_bytes = self._folder or "memory", _free_bytes(self._folder)
        if size_bytes > free_bytes:
            raise ResourceError(
                f"The weights on their way to the engines need {size_bytes / GIB:.1f} GiB of {where} on {self._host} "
                f"({NUM_FILES} files of {size_bytes / NUM_FILES / GIB:.1f} GiB: the version that serves and the next), "
                f"and {free_bytes / GIB:.1f} GiB are free. Give the machine or its container more memory, or set "
                "weights.dir to a folder on a fast disk of its own."
            )


def _is_locked(file: BinaryIO, patience_s: float) -> bool:
    """Whether nobody reads the file now, or will before `commit`."""
    until_s = monotonic() + patience_s
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if monotonic() >= until_s:
            return False
        sleep(POLL_S)


def _free_bytes(folder: str) -> int:
    if folder:
        return shutil.disk_usage(folder).free
    free_bytes = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limit, used, stat = ((CGROUP / name).read_text() for name in ("memory.max", "memory.current", "memory.stat"))
        cached = dict(line.split() for line in stat.splitlines())["inactive_file"]  # goes as soon as room is needed
        free_bytes = min(free_bytes, int(limit) - int(used) + int(cached))
    return free_bytes
