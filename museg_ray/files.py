"""Files that appear whole or not at all, files that are deleted and no others, and which paths are URLs."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ELOOP
from itertools import count
from pathlib import Path
from secrets import token_hex
from stat import S_ISREG

from blake3 import blake3

PARTIAL = ".partial"
_PARTIAL_NAME = re.compile(r"\..+\.[0-9a-f]{16}\.partial(\..{1,7})?")


def is_url(path: str) -> bool:
    """True of `s3://bucket/a.mp4`, `https://…` and the like; what comes before `://` must be the name of a protocol."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def check_regular(path: Path) -> None:
    """Make sure that reading a file comes to an end: a pipe may wait for ever, and a device has none.

    Raises:
        OSError: it is not there, or is no regular file.
    """
    if not S_ISREG(path.stat().st_mode):
        raise OSError(EINVAL, "It is no regular file (a folder, a pipe or a device)")


def partial_path(path: Path) -> Path:
    """Where to write what will be renamed to `path`: hidden, as readers of a folder of Parquet files skip what starts
    with a dot; and no one else writes there."""
    return path.with_name(f".{path.name}.{token_hex(8)}{PARTIAL}")


def is_partial(name: str) -> bool:
    """True of a name that `partial_path` gave, also with the ending of a video behind it."""
    return _PARTIAL_NAME.fullmatch(name) is not None


def free_path(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … where nothing is."""
    names = (path.name if number == 1 else f"{path.name}-{number}" for number in count(1))
    return next(free for free in map(path.with_name, names) if not os.path.lexists(free))


def remove_files(folder: Path, is_own: Callable[[str], bool]) -> None:
    """Delete those files of a folder that are its writer's own, and the folder where nothing else is in it.

    Invariant: what others have put into the folder stays, and a symbolic link is neither followed nor removed. Else a
    run would delete what a person has put there.

    Args:
        folder: need not be there.
        is_own: told each file's path within the folder, with slashes.

    Raises:
        OSError: a file cannot be deleted.
    """
    if folder.is_symlink():
        return
    for parent, _, names in os.walk(folder, topdown=False):
        for path in map(Path(parent).joinpath, names):
            if not path.is_symlink() and is_own(path.relative_to(folder).as_posix()):
                path.unlink()
        with suppress(OSError):  # not empty
            os.rmdir(parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to: renamed to `path` at the end, deleted where that fails. Readers see the old file or the new
    one, never half of one."""
    if path.is_symlink():
        raise OSError(ELOOP, "It is a symbolic link, which is never replaced", str(path))
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def described(path: Path) -> dict[str, object]:
    """Size and BLAKE3 of a file, which is on the disk when this returns: to be called on the machine that wrote it,
    where it is in memory still."""
    sync(path)
    return {"size_bytes": path.stat().st_size, "blake3": hash_of(path)}


def hash_of(path: Path) -> str:
    """BLAKE3 of a file's content, in hexadecimal digits."""
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
