"""The folders of a frame store: who may use them, and how large one may get. Safe for processes that share them."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from museg_ray.errors import ResourceError
from museg_ray.files import is_partial

UNCOUNTED_SHARE = 0.02
"""Others add files too: after so much of its own, of the limit, a process counts the folder anew."""
KEPT_SHARE = 0.9
"""What is kept when the limit is passed: room for some, so that not every new file drives one out."""
STORED = re.compile(r"[0-9a-f]{32}\.arrow|[0-9a-f]{64}(\..{0,7})?")
"""How its files are called: a clip by its key, a copy by a hash, with the ending of its video."""
ABANDONED_S = 24 * 3600.0
"""A partial file so old belongs to a process that was killed."""


@dataclass(frozen=True, slots=True)
class Access:
    """The permissions of new folders, and of new files in them, by `video.store_mode` and whatever the umask. What is
    there already keeps its own."""

    folder_mode: int

    def make_folder(self, path: Path) -> None:
        """Make a folder where there is none; those above it are no part of the store and follow the umask."""
        try:
            path.mkdir(mode=0o700, parents=True)
        except OSError:  # of a folder that is there some systems say first that it may not be written
            if not path.is_dir():
                raise
        else:
            path.chmod(self.folder_mode)

    def new_file(self, path: Path) -> BinaryIO:
        """Make a file to write to. Never, not even for a moment, is it open to more than it may be."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(descriptor, self.folder_mode & 0o666)
        return os.fdopen(descriptor, "wb")


PRIVATE = Access(0o700)
ACCESS = {
    "private": PRIVATE,
    "group": Access(0o2770),  # with the bit that gives all in it the store folder's group
    "shared": Access(0o777),
}


@contextmanager
def own_storage(folder: Path) -> Iterator[None]:
    """What fails in here is this machine's disk and no video."""
    try:
        yield
    except OSError as error:
        remedy = "Free space there, or set video.store_dir to a folder that can be written."
        if isinstance(error, PermissionError):
            remedy = (
                "Set video.store_dir to a folder of your own, or have the owner share this one: video.store_mode=group "
                "for what is made from now on, and chmod for what is there."
            )
        raise ResourceError(f"The frame store {folder} cannot be used: {error.strerror or error}. {remedy}") from error


class LimitedFolder:
    """Files with a limit on their size: the longest unused leave first. They appear whole, by a rename, and may vanish
    at any time: who has one open or mapped keeps it."""

    def __init__(self, folder: Path, limit_bytes: int, access: Access = PRIVATE) -> None:
        self.folder, self.access = folder, access
        self._limit_bytes = limit_bytes
        self._uncounted_bytes = limit_bytes  # what is there before the first file of its own
        self._size_bytes = 0

    def add(self, partial: Path, name: str) -> Path:
        """Rename a partial file into place, then make room."""
        size_bytes = partial.stat().st_size
        path = self.folder / name
        partial.replace(path)
        self._size_bytes += size_bytes
        self._uncounted_bytes += size_bytes
        if self._uncounted_bytes > UNCOUNTED_SHARE * self._limit_bytes or self._size_bytes > self._limit_bytes:
            self._make_room(path)
        return path

    def take_out(self, name: str, partial: Path) -> bool:
        """The inverse: a partial file is nobody's but its owner's, and not driven out. False where there is none."""
        path = self.folder / name
        try:
            os.utime(path)  # else it would count as abandoned at once
            path.rename(partial)
        except FileNotFoundError:
            return False
        return True

    def touch(self, path: Path, stat: os.stat_result) -> None:
        """Note that a file is in use, as its time of access: a file system's own may be turned off."""
        with suppress(OSError):  # gone meanwhile, or the folder is not ours to write
            os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))

    def _make_room(self, newest: Path) -> None:
        files = list(self._files())
        self._uncounted_bytes = 0
        self._size_bytes = sum(size_bytes for _, size_bytes, _ in files)
        if self._size_bytes <= self._limit_bytes:
            return
        for _, size_bytes, path in sorted(files):
            if self._size_bytes <= KEPT_SHARE * self._limit_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                self._size_bytes -= size_bytes

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of every file of a store; deletes what was abandoned half-written.

        Invariant: what is not named like a store's file is not counted and never deleted: `video.store_dir` may be a
        folder where a person has a `clips` of their own.
        """
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # deleted by another process while we look
                if not entry.is_file(follow_symlinks=False):
                    continue
                stat = entry.stat()
                if STORED.fullmatch(entry.name):
                    yield stat.st_atime, stat.st_size, Path(entry.path)
                elif is_partial(entry.name) and time.time() - stat.st_mtime > ABANDONED_S:
                    Path(entry.path).unlink()
