"""Your own annotations, as JSON lines or CSV with this package's column names (`generic`)."""

import csv
import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from museg_ray.data import fields
from museg_ray.data.annotations import source_of
from museg_ray.data.importers.rows import ImportedRow, json_row, object_rows, scaled
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery, Segment

_NUMBER = r"-?\d+(?:\.\d+)?"
_CLOCK = r"(?:\d+:)?\d+:\d\d(?:\.\d+)?"
_ITEM = re.compile(f"({_CLOCK}|{_NUMBER})-({_CLOCK}|{_NUMBER})")
COLUMNS = ("video", "question", "segments", "duration_s", "task", "source", "idx", "unit", "fps")


class Unit(StrEnum):
    """Of annotated times."""

    SECONDS = "s"
    MILLISECONDS = "ms"
    FRAMES = "frames"
    CLOCK = "hh:mm:ss"


def read_generic(path: Path, unit: Unit | None = None) -> Iterator[ImportedRow]:
    """.jsonl or .csv (UTF-8, first line the column names) with

    * video: path or URL of the file
    * question: what to look for
    * segments: `12.3-15.0 20.1-31.75`, seconds; in JSON lines also [[12.3, 15.0], [20.1, 31.75]]
    * duration_s, or duration: seconds; may be absent or empty
    * unit: of the times in segments: s, ms, frames or hh:mm:ss; `unit` stands for it, and s where both are absent
    * fps: frames a second; must be there for frames, and must not without a unit
    * task: tvg or tal; tvg where it is absent and there is one segment, else tal
    * source: the corpus; the video's folder where it is absent
    * idx: names the row, in place of its number; may be absent

    Other columns are not read, and named in the rows.
    """
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(path, unit)
    else:
        rows = object_rows(path, lambda row, number: _query(row, path, number, unit))
    return (row._replace(unread=_unread(row)) for row in rows)


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file by column name, with the number of the line that each ends on. Empty cells are absent.

    Raises:
        DataError: it cannot be read as CSV.
    """
    with fields.opened_text(path, newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                yield reader.line_num, {name: cell for name, cell in row.items() if cell not in (None, "")}
        except csv.Error as error:
            raise DataError(f"{path} is not CSV: {error}.") from error


def _csv_rows(path: Path, unit: Unit | None) -> Iterator[ImportedRow]:
    for number, row in read_csv(path):
        yield json_row(path, number, row, lambda row, number: _query(_with_numbers(row), path, number, unit))


def _with_numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A CSV row with its numbers as such."""
    if None in row:
        raise DataError("the line has more cells than the first line has column names")
    numbers = {}
    for name in ("duration_s", "duration", "fps"):
        with suppress(ValueError, KeyError):
            numbers[name] = float(row[name])
    return row | numbers


def _unread(row: ImportedRow) -> tuple[str, ...]:
    if isinstance(row.parsed, DataError):
        return ()
    names = json.loads(row.raw)
    known = COLUMNS if "duration_s" in names else (*COLUMNS, "duration")
    return tuple(name for name in names if name not in known)


def _query(row: dict[str, Any], path: Path, number: int, unit: Unit | None) -> GroundingQuery:
    video, truth = fields.video_name(row), _segments(fields.required(row, "segments"), _unit(row, unit), row.get("fps"))
    task = row.get("task") or ("tvg" if len(truth) == 1 else "tal")
    fields.expect(task in fields.TASKS, "task", task, " or ".join(fields.TASKS))
    length = "duration_s" if "duration_s" in row else "duration"
    return GroundingQuery(
        query_id=fields.query_id(path, row.get("idx", number)),
        video=video,
        question=fields.text(row, "question"),
        segments=truth,
        duration_s=fields.read_duration_s(row.get(length), length),
        task=task,
        source=fields.text(row, "source") if row.get("source") else source_of(video),
    )


def _unit(row: dict[str, Any], default: Unit | None) -> Unit:
    told = row.get("unit", default)
    if told is None and "fps" in row:
        raise DataError(
            "it has fps and no unit: its times may be frame numbers. Add a column unit, or --unit s | frames"
        )
    fields.expect(told is None or told in list(Unit), "unit", told, " or ".join(Unit))
    return Unit(told or Unit.SECONDS)


def _segments(value: Any, unit: Unit, fps: Any) -> tuple[Segment, ...]:
    pairs = value
    if isinstance(value, str):
        items = [_ITEM.fullmatch(item) for item in value.split()]
        expected = "START-END, such as 12.3-15.0 20.1-31.75; with unit hh:mm:ss such as 0:12.3-1:02:15"
        fields.expect(bool(items) and all(items), "segments", value, expected)
        pairs = [[item[1], item[2]] for item in items if item]
    if isinstance(pairs, list):
        pairs = [[_number(time, unit) for time in pair] if isinstance(pair, list) else pair for pair in pairs]
    truth = fields.read_pairs(pairs, "segments")
    return truth if unit is Unit.SECONDS else scaled(truth, _unit_s(unit, fps))


def _number(time: Any, unit: Unit) -> Any:
    """A time as a number of its unit; of a clock in seconds. What is none stays, to be refused."""
    if not isinstance(time, str):
        return time
    if unit is Unit.CLOCK and re.fullmatch(_CLOCK, time):
        return sum(float(part) * 60**place for place, part in enumerate(reversed(time.split(":"))))
    fields.expect(
        bool(re.fullmatch(_NUMBER, time)), "segments", time, f"a number of {unit}; for 1:02:15 say --unit hh:mm:ss"
    )
    return float(time)


def _unit_s(unit: Unit, fps: Any) -> float:
    if unit is not Unit.FRAMES:
        return 0.001 if unit is Unit.MILLISECONDS else 1.0
    fields.expect(
        fields.is_number(fps) and 0 < fps < math.inf, "fps", fps, "frames a second above 0, for times in frames"
    )
    return float(1 / fps)
