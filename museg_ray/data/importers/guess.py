"""Tells of which format a file is, for the error of an import that was told of another."""

from itertools import islice
from pathlib import Path

from museg_ray.data.importers import IMPORTERS
from museg_ray.data.importers.rows import NotGrounding
from museg_ray.errors import DataError

NUM_TRIED = 5
"""Rows: the first may be at fault."""


def guess_format(path: Path) -> str | None:
    """The first format that one of a file's first rows can be read as."""
    return next((name for name in IMPORTERS if _can_read(name, path)), None)


def _can_read(importer: str, path: Path) -> bool:
    try:
        first = [row.parsed for row in islice(IMPORTERS[importer](path), NUM_TRIED)]
    except DataError:
        return False
    return any(isinstance(parsed, NotGrounding) or not isinstance(parsed, DataError) for parsed in first)
