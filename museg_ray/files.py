"""Files that appear whole or not at all, and which paths are URLs."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path
from secrets import token_hex
from stat import S_ISREG

PARTIAL = ".partial"


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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to: renamed to `path` at the end, deleted where that fails. Readers see the old file or the new
    one, never half of one."""
    partial = partial_path(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
