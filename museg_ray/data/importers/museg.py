"""MUSEG's own files: the training rows (`museg`) and the evaluation rows (`museg_eval`).

Source: github.com/THUNLP-MT/MUSEG, the files stage_1.jsonl, stage_2.jsonl, charades_sta.json, thumos14.json and
thumos15.json of its release.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from museg_ray.data.annotations import museg_query, source_of
from museg_ray.data.fields import query_id, read_pairs, required, text, video_name
from museg_ray.data.importers.et import is_bench_row, read_bench_row
from museg_ray.data.importers.rows import ImportedRow, element_rows, object_rows
from museg_ray.types import GroundingQuery

ONE_SEGMENT_SOURCES = ("charades",)
"""Evaluation sets that ask for one segment; the others ask for all."""


def read_museg(path: Path) -> Iterator[ImportedRow]:
    """JSON lines {idx, problem, solution: [[start_s, end_s], …], video, task: tvg | tal, duration?}.

    The source is the folder of the video: `videos/et_instruct_164k/hacs/A.mp4` is of `hacs`.
    """
    return object_rows(path, lambda row, number: museg_query(row, path, read_pairs))


def read_museg_eval(path: Path) -> Iterator[ImportedRow]:
    """A JSON list of {video, question, groundtruth: [[start_s, end_s], …]}, e.g. charades_sta.json, thumos14.json or
    perception_test.json; et_bench.json, whose rows are those of E.T. Bench, is read as such.

    The source is the folder of the video. Charades-STA asks for one segment (`tvg`), every other set for all (`tal`).
    """

    def parse(row: dict[str, Any], number: int) -> GroundingQuery:
        if is_bench_row(row):
            return read_bench_row(row, path, number)
        video = video_name(row)
        source = source_of(video)
        return GroundingQuery(
            query_id=query_id(path, number),
            video=video,
            question=text(row, "question"),
            segments=read_pairs(required(row, "groundtruth"), "groundtruth"),
            task="tvg" if source in ONE_SEGMENT_SOURCES else "tal",
            source=source,
        )

    return element_rows(path, parse)
