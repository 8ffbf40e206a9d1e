"""TACoS (`tacos`), whose times are frame numbers.

Source: train.json, val.json and test.json as 2D-TAN (github.com/microsoft/VideoX, arXiv 1912.03590) released them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from museg_ray.data.fields import expect, is_number, query_id, read_pairs, required, text, video_name
from museg_ray.data.importers.activitynet import sentence_rows
from museg_ray.data.importers.rows import ImportedRow, scaled
from museg_ray.types import GroundingQuery


def read_tacos(path: Path) -> Iterator[ImportedRow]:
    """A JSON object {VIDEO: {fps, num_frames, timestamps: [[first, last], …], sentences: [text, …]}}: a row for every
    sentence, numbered through the file. VIDEO is the file's name with its ending."""

    def parse(row: dict[str, Any], number: int) -> GroundingQuery:
        fps, num_frames = _count(row, "fps"), _count(row, "num_frames")
        return GroundingQuery(
            query_id=query_id(path, number),
            video=video_name(row),
            question=text(row, "sentence").strip(),
            segments=scaled(read_pairs([required(row, "timestamp")], "timestamps"), 1 / fps),
            duration_s=round(num_frames / fps, 3),
            source="tacos",
        )

    return sentence_rows(path, ("fps", "num_frames"), parse)


def _count(row: dict[str, Any], name: str) -> float:
    value = required(row, name)
    expect(is_number(value) and value > 0, name, value, "a number above 0")
    return float(value)
