"""What importers share: reading files row by row, and the fields of a row, before any rule is applied."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from museg_ray.data.annotations import (
    expect,
    is_unicode,
    json_text,
    numbered_lines,
    read_object,
    required,
    without_repeats,
)
from museg_ray.errors import DataError
from museg_ray.files import check_regular
from museg_ray.types import GroundingQuery, Segment


class NotGrounding(DataError):
    """A well-formed row that does not ask when something happens."""


class ImportedRow(NamedTuple):
    """One row as it stood, and what an importer read in it."""

    file: str
    number: int
    """Line of a text file, or place in a JSON file; from 1."""
    raw: str
    """The line, or the element as JSON text; always valid Unicode."""
    parsed: GroundingQuery | DataError
    """The query with its segments as annotated, in any order and of any value, its video path as annotated; or why
    there is none."""
    unread: tuple[str, ...] = ()
    """Names of its fields that were left out of account, where any may stand."""


Importer = Callable[[Path], Iterator[ImportedRow]]
"""Reads a file row by row. Raises DataError where the file as a whole cannot be read; a bad row is yielded as such."""


def line_rows(path: Path, parse: Callable[[str, int], GroundingQuery]) -> Iterator[ImportedRow]:
    """One row for every line that is not blank; `parse` gets the line and its number."""
    for number, line in numbered_lines(path):
        yield ImportedRow(str(path), number, line, _parsed(parse, line, number))


def object_rows(path: Path, parse: Callable[[dict[str, Any], int], GroundingQuery]) -> Iterator[ImportedRow]:
    """One row for every line of a JSON-lines file."""
    return line_rows(path, lambda line, number: parse(read_object(line, "the fields of a query"), number))


def element_rows(path: Path, parse: Callable[[dict[str, Any], int], GroundingQuery]) -> Iterator[ImportedRow]:
    """One row for every element of a JSON list."""
    elements = read_json(path)
    if not isinstance(elements, list):
        raise DataError(f"{path} holds a JSON {type(elements).__name__}; expected a list with an object a query.")
    for number, element in enumerate(elements, start=1):
        yield json_row(path, number, element, parse)


def json_row(
    path: Path, number: int, element: Any, parse: Callable[[dict[str, Any], int], GroundingQuery]
) -> ImportedRow:
    """The row of a part of a JSON file that should be an object."""

    def parse_object(value: Any, number: int) -> GroundingQuery:
        if not isinstance(value, dict):
            raise DataError("it is no JSON object; expected one with the fields of a query")
        return parse(value, number)

    return ImportedRow(str(path), number, json_text(element), _parsed(parse_object, element, number))


def _parsed(parse: Callable[[Any, int], GroundingQuery], value: Any, number: int) -> GroundingQuery | DataError:
    try:
        return parse(value, number)
    except DataError as error:
        return error
    except RecursionError:
        return DataError("it is nested too deeply")


def read_json(path: Path) -> Any:
    """
    Raises:
        DataError: the file cannot be read or is no JSON.
    """
    try:
        check_regular(path)
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise DataError(f"{path} is not valid JSON: {error}.") from error


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


def segments(value: Any, field: str) -> tuple[Segment, ...]:
    """A list of [start_s, end_s] as it stands, at least one; their values are for the rules to judge.

    Raises:
        DataError: anything else; names the field.
    """
    expected = "a list of [start_s, end_s]"
    expect(isinstance(value, list) and bool(value), field, value, expected)
    for pair in value:
        expect(isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair)), field, pair, expected)
    return tuple((_as_float(start_s), _as_float(end_s)) for start_s, end_s in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return math.inf if value > 0 else -math.inf


def scaled(pairs: Sequence[Segment], unit_s: float) -> tuple[Segment, ...]:
    """Times in units of `unit_s` as seconds, without digits that nobody annotated."""
    return tuple((round(start * unit_s, 6), round(end * unit_s, 6)) for start, end in pairs)
