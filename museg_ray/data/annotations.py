"""Reads annotation files in MUSEG's schema: one JSON object a line with idx, problem, solution, video, task and,
where it is known, duration."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from museg_ray.data import fields
from museg_ray.data.rules import find_fault
from museg_ray.errors import DataError
from museg_ray.files import is_url
from museg_ray.types import GroundingQuery, Segment

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
    for number, line in fields.numbered_lines(path):
        try:
            row = fields.read_object(line, "idx, problem, solution, video and task")
            query = kept_to_rules(museg_query(row, path, fields.read_segments), "solution")
            if query.query_id in queries:
                raise DataError(f"field 'idx' repeats that of an earlier row ({query.query_id}); expected a new one")
            queries[query.query_id] = replace(query, video=join_video(root, query.video))
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


def museg_query(
    row: dict[str, Any], path: Path, read_truth: Callable[[Any, str], tuple[Segment, ...]]
) -> GroundingQuery:
    """The query of a row of that file, its video path as annotated.

    Args:
        read_truth: told the segments and their field's name.

    Raises:
        DataError: a field is absent or malformed; names it.
    """
    task, video = fields.required(row, "task"), fields.video_name(row)
    fields.expect(task in fields.TASKS, "task", task, " or ".join(fields.TASKS))
    return GroundingQuery(
        query_id=fields.query_id(path, fields.required(row, "idx")),
        video=video,
        question=fields.text(row, "problem"),
        segments=read_truth(fields.required(row, "solution"), "solution"),
        duration_s=fields.read_duration_s(row.get("duration"), "duration"),
        task=task,
        source=source_of(video),
    )


def kept_to_rules(query: GroundingQuery, field: str) -> GroundingQuery:
    """The query, which is to be trained on or evaluated: its segments keep the rules of imported rows.

    Args:
        field: where the row has its segments.

    Raises:
        DataError: segments that overlap or end after the video; names the field.
    """
    fault = find_fault(query.segments, query.duration_s)
    if fault is not None:
        raise DataError(f"field {field!r} breaks the rule {fault.rule}: {fault.reason}")
    return query


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
