"""QVHighlights (`qvhighlights`).

Source: github.com/jayleicn/moment_detr, data/README.md (arXiv 2107.09609). The test split has no windows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from museg_ray.data.fields import query_id, read_duration_s, read_pairs, required, text, video_name
from museg_ray.data.importers.rows import ImportedRow, object_rows
from museg_ray.types import GroundingQuery


def read_qvhighlights(path: Path) -> Iterator[ImportedRow]:
    """JSON lines {qid, query, duration, vid, relevant_windows: [[start_s, end_s], …]}; the file of the video is
    VID.mp4. All moments that a query describes are asked for (`tal`)."""

    def parse(row: dict[str, Any], number: int) -> GroundingQuery:
        return GroundingQuery(
            query_id=query_id(path, required(row, "qid"), "qid"),
            video=f"{video_name(row, 'vid')}.mp4",
            question=text(row, "query").strip(),
            segments=read_pairs(required(row, "relevant_windows"), "relevant_windows"),
            duration_s=read_duration_s(row.get("duration"), "duration"),
            task="tal",
            source="qvhighlights",
        )

    return object_rows(path, parse)
