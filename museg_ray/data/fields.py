"""Text files of rows, and the fields of a row: what holds something else is refused by the field's name."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeGuard

from museg_ray.errors import DataError
from museg_ray.files import check_regular
from museg_ray.types import MAX_TIME_S, Segment

TASKS = ("tvg", "tal")


@contextmanager
def opened_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file to read. A byte order mark is none of the text.

    Args:
        newline: as `open` takes it.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        check_regular(path)
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.") from error


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, numbered from 1.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    with opened_text(path) as file:
        lines = file.read().split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_json(path: Path) -> Any:
    """
    Raises:
        DataError: the file cannot be read or is no JSON.
    """
    with opened_text(path) as file:
        text = file.read()
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}.") from error


def read_object(line: str, expected: str) -> dict[str, Any]:
    """A line's JSON object.

    Raises:
        DataError: it is none; says that it should hold what is `expected`.
    """
    try:
        row = json.loads(line, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"holds {_show(row)}; expected a JSON object with {expected}")
    return row


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`, which else keeps the last of several values of a key and drops the others unsaid.

    Raises:
        ValueError: a key is there twice.
    """
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json_text(twice)} is given twice in one object")
    return read


def required(row: dict[str, Any], name: str) -> Any:
    """A field that must be there, else a DataError."""
    if name not in row:
        raise DataError(f"field {name!r} is missing; found {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def expect(condition: bool, field: str, found: Any, expected: str) -> None:
    """A DataError unless the condition holds."""
    if not condition:
        raise DataError(f"field {field!r} holds {_show(found)}; expected {expected}")


def text(row: dict[str, Any], name: str) -> str:
    """A field that must be there and hold a text that is not blank."""
    value = required(row, name)
    expect(is_unicode(value) and bool(value.strip()), name, value, "a text")
    return str(value)


def video_name(row: dict[str, Any], name: str = "video") -> str:
    """A field with a video's path, URL or id; spaces around it come from tables and are no part of it."""
    return text(row, name).strip()


def query_id(path: Path, idx: Any, field: str = "idx") -> str:
    """`<file stem>/<idx>`."""
    is_id = type(idx) is int or is_unicode(idx)
    expect(is_id, field, idx, "a number or a text")
    return f"{path.stem}/{idx}"


def read_pairs(value: Any, field: str, are_finite: bool = False) -> tuple[Segment, ...]:
    """A JSON list of [start_s, end_s] as it stands, at least one pair.

    Args:
        are_finite: neither NaN nor infinite.

    Raises:
        DataError: anything else; names the field.
    """
    expected, is_time = "a list of [start_s, end_s]", _is_finite if are_finite else is_number
    expect(isinstance(value, list) and bool(value), field, value, expected)
    for pair in value:
        expect(isinstance(pair, list) and len(pair) == 2 and all(map(is_time, pair)), field, pair, expected)
    return tuple((_as_float(start_s), _as_float(end_s)) for start_s, end_s in value)


def read_segments(value: Any, field: str) -> tuple[Segment, ...]:
    """`read_pairs`, sorted, each a segment.

    Raises:
        DataError: not so, or a pair without 0 <= start_s < end_s; names the field.
    """
    segments = read_pairs(value, field)
    expected = f"segments with 0 <= start_s < end_s <= {MAX_TIME_S:g}"
    for pair in value:
        expect(0 <= pair[0] < pair[1] <= MAX_TIME_S, field, pair, expected)
    return tuple(sorted(segments))


def read_duration_s(value: Any, field: str) -> float | None:
    """A length in seconds; None stands for an unknown one.

    Raises:
        DataError: anything else; names the field.
    """
    if value is None:
        return None
    expect(_is_finite(value) and value > 0, field, value, "seconds above 0, or no such field")
    return float(value)


def is_number(value: Any) -> TypeGuard[float]:
    """True for a JSON number; booleans are none."""
    return type(value) in (int, float)


def _is_finite(value: Any) -> bool:
    """True for a JSON number that a float can hold (NaN, Infinity and 400-digit integers are none)."""
    return is_number(value) and math.isfinite(_as_float(value))


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return math.inf if value > 0 else -math.inf


def is_unicode(value: Any) -> TypeGuard[str]:
    """True for a text without half a surrogate pair, which JSON can tell of and no file can hold."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def json_text(value: Any) -> str:
    """JSON in readable Unicode; half a surrogate pair, which no file can hold, stays an escape."""
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    except RecursionError:  # what could just be read may be too deep to be written
        return json.dumps("nested too deeply to be shown")


def _show(value: Any, limit: int = 80) -> str:
    text = json_text(value)
    return text if len(text) <= limit else text[:limit] + "…"
