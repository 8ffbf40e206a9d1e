"""Charades-STA as its authors released it (`charades_sta`).

Source: github.com/jiyanggao/TALL, charades_sta_train.txt and charades_sta_test.txt (arXiv 1705.02101). They tell no
durations; those are the column `length` of Charades_v1_train.csv and Charades_v1_test.csv of the Charades corpus
(prior.allenai.org/projects/charades).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from museg_ray.data.fields import query_id
from museg_ray.data.importers.rows import ImportedRow, line_rows
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery

_ROW = re.compile(
    r"\s*(?P<video>\S+)\s+(?P<start_s>-?\d+(\.\d+)?)\s+(?P<end_s>-?\d+(\.\d+)?)\s*##\s*(?P<sentence>.*\S)"
)


def read_charades_sta(path: Path) -> Iterator[ImportedRow]:
    """Text lines `VIDEO START END##SENTENCE.`, times in seconds; the file of the video is VIDEO.mp4."""

    def parse(line: str, number: int) -> GroundingQuery:
        row = _ROW.match(line)
        if row is None:
            raise DataError("the line is not of the form VIDEO START END##SENTENCE")
        return GroundingQuery(
            query_id=query_id(path, number),
            video=f"{row['video']}.mp4",
            question=row["sentence"],
            segments=((float(row["start_s"]), float(row["end_s"])),),
            source="charades",
        )

    return line_rows(path, parse)
