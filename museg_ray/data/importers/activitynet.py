"""ActivityNet Captions (`activitynet`).

Source: cs.stanford.edu/people/ranjaykrishna/densevid, train.json, val_1.json and val_2.json (arXiv 1705.00754).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from museg_ray.data.annotations import expect, read_duration_s, required
from museg_ray.data.importers.rows import ImportedRow, json_row, query_id, read_json, segments, text, video_name
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery


def read_activitynet(path: Path) -> Iterator[ImportedRow]:
    """A JSON object {VIDEO: {duration, timestamps: [[start_s, end_s], …], sentences: [text, …]}}: a row for every
    sentence, numbered through the file; the file of the video is VIDEO.mp4."""
    videos = read_json(path)
    if not isinstance(videos, dict):
        raise DataError(f"{path} holds a JSON {type(videos).__name__}; expected an object with one entry a video.")
    number = 0
    for video, entry in videos.items():
        for element in _sentences(video, entry):
            number += 1
            yield json_row(path, number, element, lambda row, number: _query(row, path, number))


def _sentences(video: str, entry: Any) -> list[dict[str, Any]]:
    """A row for every sentence with its times; one row that holds the whole entry where they do not pair up."""
    times, sentences = (entry.get("timestamps"), entry.get("sentences")) if isinstance(entry, dict) else (None, None)
    if not isinstance(times, list) or not isinstance(sentences, list) or len(times) != len(sentences) or not times:
        return [{"video": video, "entry": entry}]
    shared = {"video": video, "duration": entry.get("duration")}
    return [shared | {"timestamp": pair, "sentence": sentence} for pair, sentence in zip(times, sentences, strict=True)]


def _query(row: dict[str, Any], path: Path, number: int) -> GroundingQuery:
    expected = "an object with timestamps and sentences, as many of each and at least one"
    expect("entry" not in row, row["video"], row.get("entry"), expected)
    return GroundingQuery(
        query_id=query_id(path, number),
        video=f"{video_name(row)}.mp4",
        question=text(row, "sentence").strip(),
        segments=segments([required(row, "timestamp")], "timestamps"),
        duration_s=read_duration_s(row["duration"], "duration"),
        source="activitynet",
    )
