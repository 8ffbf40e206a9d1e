"""Reads annotation files in MUSEG's schema: one JSON object a line with idx, problem, solution, video, task and,
where it is known, duration."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from museg_ray.data.rules import find_fault
from museg_ray.errors import DataError
from museg_ray.files import check_regular, is_url
from museg_ray.types import MAX_TIME_S, GroundingQuery, Segment

TASKS = ("tvg", "tal")
NUM_LISTED = 3
"""Missing files that an error names; of the rest it tells how many."""


def read_annotations(path: Path, video_root: str | Path | None = None) -> list[GroundingQuery]:
    """All queries of a file, in its order.

    Args:
        path: .jsonl file; blank lines are skipped.
        video_root: folder or URL that relative video paths start from; the file's own folder when None.

    Raises:
        DataError: the file or one of its rows is malformed; shows the first such row and tells how many there are.
    """
    root = str(video_root or path.parent)
    queries: dict[str, GroundingQuery] = {}
    faults = []
    for number, line in numbered_lines(path):
        try:
            query = _read_row(line, path.stem, root)
            if query.query_id in queries:
                raise DataError(f"field 'idx' repeats that of an earlier row ({query.query_id}); expected a new one")
            queries[query.query_id] = query
        except DataError as error:
            faults.append(f"{path}:{number}: {error}")
    if faults:
        num_rows = len(queries) + len(faults)
        rooted = f" --video-root {root}" if video_root else ""
        raise DataError(
            f"{faults[0]}. Rows at fault: {len(faults)} of {num_rows}; correct or remove them, or let "
            f"`museg data import museg {path.name} --out DIR{rooted}` repair them and use DIR/queries.parquet."
        )
    if not queries:
        raise DataError(f"{path} has no rows; expected one JSON object a line.")
    return list(queries.values())


def check_ids(queries_of_file: Mapping[str, Sequence[GroundingQuery]]) -> None:
    """Make sure that no two files hold a query of the same id: ledger and rollouts tell queries apart by it.

    Raises:
        DataError: names both files and the id.
    """
    file_of: dict[str, str] = {}
    for path, queries in queries_of_file.items():
        for query in queries:
            other = file_of.setdefault(query.query_id, path)
            if other != path:
                raise DataError(
                    f"{other} and {path} both hold a query {query.query_id}: ids start with the file's name. "
                    "Rename one of the files."
                )


def check_videos(queries: Iterable[GroundingQuery]) -> None:
    """Make sure before a long run that every video file is there; those at URLs are checked when they are fetched.

    Raises:
        DataError: names the first few missing files and how many there are.
    """
    videos = [video for video in dict.fromkeys(query.video for query in queries) if not is_url(video)]
    missing = [video for video in videos if not os.path.isfile(video)]  # False too where it may not be looked at
    if missing:
        listed = ", ".join(missing[:NUM_LISTED]) + (", …" if len(missing) > NUM_LISTED else "")
        raise DataError(
            f"Video files missing: {len(missing)} of {len(videos)}: {listed}. "
            "Put them there, or set data.video_root to the folder that the annotated paths start from."
        )


def join_video(root: str, video: str) -> str:
    """Where an annotated video is: relative paths start from the root, a folder or a URL; others stand for themselves.

    Returns:
        An absolute path or a URL.
    """
    if is_url(video):
        return video
    if is_url(root) and not video.startswith("/"):
        return f"{root}{'' if root.endswith('/') else '/'}{video.removeprefix('./')}"
    return str(Path(root).absolute() / video)


def source_of(video: str) -> str:
    """The corpus that a video's folder names: `charades` of `videos/charades/A.mp4`; empty of `videos/A.mp4`."""
    folder = PurePosixPath(video).parent.name
    return "" if folder == "videos" else folder


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a JSON-lines file that are not blank, numbered from 1. A byte order mark is none of the text.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        check_regular(path)
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}. Expected JSON lines.") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_object(line: str, expected: str) -> dict[str, Any]:
    """A line's JSON object.

    Raises:
        DataError: it is none; says that it should hold what is `expected`.
    """
    try:
        row = json.loads(line, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"holds {_show(row)}; expected a JSON object with {expected}")
    return row


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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


def _read_row(line: str, stem: str, root: str) -> GroundingQuery:
    row = read_object(line, "idx, problem, solution, video and task")
    idx, problem, video, task = (required(row, name) for name in ("idx", "problem", "video", "task"))
    expect(type(idx) is int or is_unicode(idx), "idx", idx, "a number or a text")
    expect(is_unicode(problem) and bool(problem.strip()), "problem", problem, "a text")
    expect(is_unicode(video) and bool(video.strip()), "video", video, "a path")
    expect(task in TASKS, "task", task, " or ".join(TASKS))
    duration_s = read_duration_s(row.get("duration"), "duration")
    return GroundingQuery(
        query_id=f"{stem}/{idx}",
        video=join_video(root, video.strip()),
        question=problem,
        segments=read_truth(required(row, "solution"), "solution", duration_s),
        duration_s=duration_s,
        task=task,
        source=source_of(video.strip()),
    )


def read_pairs(value: Any, field: str) -> list[Segment]:
    """A JSON list of [start_s, end_s] as it stands, at least one pair.

    Raises:
        DataError: anything else; names the field.
    """
    expected = "a list of [start_s, end_s] with 0 <= start_s < end_s"
    expect(isinstance(value, list) and bool(value), field, value, expected)
    for pair in value:
        expect(isinstance(pair, list) and len(pair) == 2 and all(map(_is_finite, pair)), field, pair, expected)
    return [(float(start_s), float(end_s)) for start_s, end_s in value]


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


def read_truth(value: Any, field: str, duration_s: float | None) -> tuple[Segment, ...]:
    """`read_segments` of a row that is to be trained on or evaluated: it keeps the rules of imported rows.

    Raises:
        DataError: not so, or segments that overlap or end after the video; names the field.
    """
    segments = read_segments(value, field)
    fault = find_fault(segments, duration_s)
    if fault is not None:
        raise DataError(f"field {field!r} breaks the rule {fault.rule}: {fault.reason}")
    return segments


def read_duration_s(value: Any, field: str) -> float | None:
    """A length in seconds; None stands for an unknown one.

    Raises:
        DataError: anything else; names the field.
    """
    if value is None:
        return None
    expect(_is_finite(value) and value > 0, field, value, "seconds above 0, or no such field")
    return float(value)


def _is_finite(value: Any) -> bool:
    """True for a JSON number that a float can hold (booleans, NaN, Infinity and 400-digit integers are none)."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def required(row: dict[str, Any], name: str) -> Any:
    """A field that must be there, else a DataError."""
    if name not in row:
        raise DataError(f"field {name!r} is missing; found {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def expect(condition: bool, field: str, found: Any, expected: str) -> None:
    """A DataError unless the condition holds."""
    if not condition:
        raise DataError(f"field {field!r} holds {_show(found)}; expected {expected}")


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
