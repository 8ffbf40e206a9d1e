"""Your own annotations, as JSON lines or CSV with this package's column names (`generic`)."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from museg_ray.data.annotations import TASKS, expect, read_duration_s, required, source_of
from museg_ray.data.importers.rows import ImportedRow, json_row, object_rows, query_id, segments, text, video_name
from museg_ray.errors import DataError
from museg_ray.files import check_regular
from museg_ray.types import GroundingQuery, Segment

_ITEM = re.compile(r"(-?\d+(?:\.\d+)?)-(-?\d+(?:\.\d+)?)")


def read_generic(path: Path) -> Iterator[ImportedRow]:
    """.jsonl or .csv (UTF-8, first line the column names) with

    * video: path or URL of the file
    * question: what to look for
    * segments: `12.3-15.0 20.1-31.75`, seconds; in JSON lines also [[12.3, 15.0], [20.1, 31.75]]
    * duration_s: seconds; may be absent or empty
    * task: tvg or tal; tvg where it is absent and there is one segment, else tal
    * source: the corpus; the video's folder where it is absent
    * idx: names the row, in place of its number; may be absent

    Other columns are not read.
    """
    if path.suffix.lower() == ".csv":
        return _csv_rows(path)
    return object_rows(path, lambda row, number: _query(row, path, number))


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file by column name, with the number of the line that each ends on. Empty cells are absent.

    Raises:
        DataError: it cannot be read as CSV.
    """
    try:
        check_regular(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, {name: cell for name, cell in row.items() if cell not in (None, "")}
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}.") from error


def _csv_rows(path: Path) -> Iterator[ImportedRow]:
    for number, row in read_csv(path):
        yield json_row(path, number, row, lambda row, number: _query(_with_duration(row), path, number))


def _with_duration(row: dict[str, Any]) -> dict[str, Any]:
    """A CSV row with its duration as a number."""
    if None in row:
        raise DataError("the line has more cells than the first line has column names")
    try:
        return row | {"duration_s": float(row["duration_s"])} if "duration_s" in row else row
    except ValueError:
        return row


def _query(row: dict[str, Any], path: Path, number: int) -> GroundingQuery:
    video, truth = video_name(row), _segments(required(row, "segments"))
    task = row.get("task") or ("tvg" if len(truth) == 1 else "tal")
    expect(task in TASKS, "task", task, " or ".join(TASKS))
    return GroundingQuery(
        query_id=query_id(path, row.get("idx", number)),
        video=video,
        question=text(row, "question"),
        segments=truth,
        duration_s=read_duration_s(row.get("duration_s"), "duration_s"),
        task=task,
        source=text(row, "source") if row.get("source") else source_of(video),
    )


def _segments(value: Any) -> tuple[Segment, ...]:
    if not isinstance(value, str):
        return segments(value, "segments")
    items = [_ITEM.fullmatch(item) for item in value.split()]
    expect(bool(items) and all(items), "segments", value, "START-END in seconds, such as 12.3-15.0 20.1-31.75")
    return tuple((float(item[1]), float(item[2])) for item in items if item)
