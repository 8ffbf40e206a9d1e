"""ActivityNet Captions (`activitynet`).

Source: cs.stanford.edu/people/ranjaykrishna/densevid, train.json, val_1.json and val_2.json (arXiv 1705.00754).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from museg_ray.data.fields import expect, query_id, read_duration_s, read_json, read_pairs, required, text, video_name
from museg_ray.data.importers.rows import ImportedRow, Parse, json_row
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery


def read_activitynet(path: Path) -> Iterator[ImportedRow]:
    """A JSON object {VIDEO: {duration, timestamps: [[start_s, end_s], …], sentences: [text, …]}}: a row for every
    sentence, numbered through the file; the file of the video is VIDEO.mp4, or else the one beside it of that stem."""

    def parse(row: dict[str, Any], number: int) -> GroundingQuery:
        return GroundingQuery(
            query_id=query_id(path, number),
            video=f"{video_name(row)}.mp4",
            question=text(row, "sentence").strip(),
            segments=read_pairs([required(row, "timestamp")], "timestamps"),
            duration_s=read_duration_s(row.get("duration"), "duration"),
            source="activitynet",
        )

    for row in sentence_rows(path, ("duration", "fps", "num_frames"), parse):
        if '"fps":' in row.raw or '"num_frames":' in row.raw:
            raise DataError(f"{path} has fps or num_frames: these are frame numbers, use tacos.")
        yield row


def sentence_rows(path: Path, shared: Sequence[str], parse: Parse) -> Iterator[ImportedRow]:
    """Of {VIDEO: {timestamps, sentences, …}} a row for every sentence, with what its video has of the `shared` fields.

    Raises:
        DataError: the file is no such object.
    """
    videos = read_json(path)
    if not isinstance(videos, dict):
        raise DataError(f"{path} holds a JSON {type(videos).__name__}; expected an object with one entry a video.")

    def parse_row(row: dict[str, Any], number: int) -> GroundingQuery:
        expected = "an object with timestamps and sentences, as many of each and at least one"
        expect("entry" not in row, row["video"], row.get("entry"), expected)
        return parse(row, number)

    elements = (element for video, entry in videos.items() for element in _sentences(video, entry, shared))
    for number, element in enumerate(elements, start=1):
        yield json_row(path, number, element, parse_row)


def _sentences(video: str, entry: Any, shared: Sequence[str]) -> list[dict[str, Any]]:
    """A row for every sentence with its times; one row that holds the whole entry where they do not pair up."""
    times, sentences = (entry.get("timestamps"), entry.get("sentences")) if isinstance(entry, dict) else (None, None)
    if not isinstance(times, list) or not isinstance(sentences, list) or len(times) != len(sentences) or not times:
        return [{"video": video, "entry": entry}]
    common = {"video": video} | {name: entry[name] for name in shared if name in entry}
    return [common | {"timestamp": pair, "sentence": sentence} for pair, sentence in zip(times, sentences, strict=True)]
