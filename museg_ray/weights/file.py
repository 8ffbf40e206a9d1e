"""The version of a weights file, and its lock: what keeps whoever reads it from weights that are not whole.

Without torch, whose memory the process that holds the files does not need.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from museg_ray.errors import WeightsLostError
from museg_ray.weights.layout import VERSION_AT, VERSION_WIDTH


def stamp(file: int, version: int | None) -> None:
    """Say in a weights file, by its descriptor, that it is whole and which version it has; None: it is being filled."""
    text = " " * VERSION_WIDTH if version is None else f"{version:>{VERSION_WIDTH}}"
    os.pwrite(file, text.encode(), VERSION_AT)


def stamped_version(file: int) -> int | None:
    """What `stamp` wrote; None of anything that has no version."""
    text = os.pread(file, VERSION_WIDTH, VERSION_AT).strip()
    return int(text) if text.isdigit() else None


@contextmanager
def held(path: Path, version: int) -> Iterator[None]:
    """Nobody fills the file anew inside this block, also not when this process is stopped in it; the lock goes with the
    process.

    Raises:
        WeightsLostError: it is no longer there, or has other weights by now.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise WeightsLostError(f"The file of weights {version} is gone ({error}).") from None
    try:
        _lock(file, version)
        yield
    finally:
        os.close(file)


def _lock(file: int, version: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WeightsLostError(f"The file of weights {version} is being filled with others.") from None
    if (found := stamped_version(file)) != version:
        has = "no whole ones" if found is None else f"weights {found}"
        raise WeightsLostError(f"The file of weights {version} has {has} by now.")
