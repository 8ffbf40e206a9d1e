"""Lengths of videos from a table beside the annotations, for annotations that tell none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from museg_ray.data.fields import read_duration_s, required
from museg_ray.data.importers.generic import read_csv
from museg_ray.data.importers.rows import ImportedRow
from museg_ray.errors import DataError


class Durations:
    """Gives rows their lengths, and counts them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """
        Args:
            paths: CSV files with columns `id` (the video file's name without its ending) and `length` in seconds, such
                as Charades_v1_train.csv; together one table. Without any, rows stay as they are.

        Raises:
            DataError: one cannot be read, a row has no id or no length (names the line), or two files tell different
                lengths of one video.
        """
        self._names = " and ".join(map(str, paths))
        self._paths = paths
        self._lengths_s: dict[str, float] = {}
        for path in paths:
            for video, length_s in _read(path).items():
                if self._lengths_s.setdefault(video, length_s) != length_s:
                    raise DataError(f"{self._names} tell different lengths of {video!r}; correct one of them.")
        self._num_filled = 0
        self._videos = {True: set[str](), False: set[str]()}
        """Ids of the videos that passed, by whether the table has them."""

    def fill(self, row: ImportedRow) -> ImportedRow:
        """The row, with a length where it has none and the table has one."""
        query = row.parsed
        if isinstance(query, DataError):
            return row
        video = Path(query.video).stem
        self._videos[video in self._lengths_s].add(video)
        if query.duration_s is not None or video not in self._lengths_s:
            return row
        self._num_filled += 1
        return row._replace(parsed=replace(query, duration_s=self._lengths_s[video]))

    def check_use(self) -> None:
        """Make sure, when all rows have passed, that the table was of these videos.

        Raises:
            DataError: it has none of them; shows an id of each side.
        """
        if self._paths and self._videos[False] and not self._videos[True]:
            raise DataError(
                f"{self._names} has a length of none of the {len(self._videos[False])} videos, so nothing was written: "
                f"it has {_example(self._lengths_s)}, the annotations have {_example(self._videos[False])}. "
                "Expected as ids the names of the video files without their endings."
            )

    def as_report(self) -> dict[str, Any] | None:
        """What report.json tells of it; None where there is no table."""
        return {"files": list(map(str, self._paths)), "rows_filled": self._num_filled} if self._paths else None


def _read(path: Path) -> dict[str, float]:
    lengths_s = {}
    for number, row in read_csv(path):
        try:
            lengths_s[required(row, "id").strip()] = _read_length_s(required(row, "length"))
        except DataError as error:
            raise DataError(
                f"{path}:{number}: {error}. Expected a column 'id' and a column 'length' in seconds; correct the line "
                "or remove it."
            ) from error
    return lengths_s


def _read_length_s(cell: str) -> float:
    try:
        length_s = read_duration_s(float(cell), "length")
    except ValueError as error:  # a DataError is one
        raise DataError(f"field 'length' holds {cell!r}; expected seconds above 0") from error
    assert length_s is not None
    return length_s


def _example(ids: dict[str, float] | set[str]) -> str:
    return f"e.g. {min(ids)!r}" if ids else "no ids"
