"""What importers share: reading files row by row, before any rule is applied."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from museg_ray.data.fields import json_text, numbered_lines, read_json, read_object
from museg_ray.errors import DataError
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


Parse = Callable[[dict[str, Any], int], GroundingQuery]
"""Reads the object of a row, told its number. Raises DataError where it is none of the format."""
Importer = Callable[[Path], Iterator[ImportedRow]]
"""Reads a file row by row. Raises DataError where the file as a whole cannot be read; a bad row is yielded as such."""


def line_rows(path: Path, parse: Callable[[str, int], GroundingQuery]) -> Iterator[ImportedRow]:
    """One row for every line that is not blank; `parse` gets the line and its number."""
    for number, line in numbered_lines(path):
        yield ImportedRow(str(path), number, line, _parsed(parse, line, number))


def object_rows(path: Path, parse: Parse) -> Iterator[ImportedRow]:
    """One row for every line of a JSON-lines file."""
    return line_rows(path, lambda line, number: parse(read_object(line, "the fields of a query"), number))


def element_rows(path: Path, parse: Parse) -> Iterator[ImportedRow]:
    """One row for every element of a JSON list."""
    elements = read_json(path)
    if not isinstance(elements, list):
        raise DataError(f"{path} holds a JSON {type(elements).__name__}; expected a list with an object a query.")
    for number, element in enumerate(elements, start=1):
        yield json_row(path, number, element, parse)


def json_row(path: Path, number: int, element: Any, parse: Parse) -> ImportedRow:
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


def scaled(pairs: Sequence[Segment], unit_s: float) -> tuple[Segment, ...]:
    """Times in units of `unit_s` as seconds, without digits that nobody annotated."""
    return tuple((round(start * unit_s, 6), round(end * unit_s, 6)) for start, end in pairs)
