"""Tells of which format a file is, for the error of an import that was told of another."""

import csv
import json
from pathlib import Path
from typing import Any

FIELDS = {
    "museg": {"idx", "problem", "solution", "video", "task"},
    "museg_eval": {"video", "question", "groundtruth"},
    "tacos": {"timestamps", "sentences", "fps", "num_frames"},
    "activitynet": {"timestamps", "sentences"},
    "qvhighlights": {"qid", "query", "vid", "relevant_windows"},
    "et_instruct": {"task", "source", "video", "tgt", "conversations"},
    "et_bench": {"task", "source", "video", "tgt", "q"},
    "generic": {"video", "question", "segments"},
}
"""By format, what each of its rows has; of two that fit the earlier one is meant."""


def guess_format(path: Path) -> str | None:
    """The format whose fields a file's first row has."""
    try:
        content = path.read_text(encoding="utf-8-sig")
        fields = _fields(path, content)
    except (OSError, ValueError, RecursionError, csv.Error):
        return None
    if "##" in content.split("\n", 1)[0] and not fields:
        return "charades_sta"
    return next((name for name, expected in FIELDS.items() if expected <= fields), None)


def _fields(path: Path, content: str) -> set[str]:
    first_line = content.lstrip().split("\n", 1)[0]
    if path.suffix.lower() == ".csv":
        return set(next(csv.reader([first_line]), ()))
    if not first_line.startswith(("{", "[")):
        return set()
    try:
        return _fields_of(json.loads(first_line))
    except ValueError:
        return _fields_of(json.loads(content))


def _fields_of(value: Any) -> set[str]:
    """Of a row, of the first of a list of rows, or of the first entry of an object with one a video."""
    if isinstance(value, list):
        return _fields_of(value[0]) if value else set()
    if not isinstance(value, dict):
        return set()
    first = next(iter(value.values()), None)
    return set(first) if isinstance(first, dict) else set(value)
