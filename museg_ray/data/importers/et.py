"""E.T. Bench (`et_bench`) and E.T. Instruct 164K (`et_instruct`), in their style with times as text.

Source: github.com/PolyU-ChenLab/ETBench, docs/BENCHMARK.md and docs/DATASET.md. Of their tasks these ask when something
happens and are answered by time alone:

* tvg, epm: temporal video grounding, episodic memory; one segment is asked for (`tvg` here)
* tal, evs, vhd: temporal action localisation, video summarisation, highlights; all segments are (`tal` here)

The others are answered with words (rar, eca, rvq, dvc, slc), with words and time (gvq), or by any one of several
moments that are like a given one (tem): they become rows that break the rule `not_grounding`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from museg_ray.data.fields import expect, query_id, read_duration_s, read_pairs, required, text, video_name
from museg_ray.data.importers.rows import ImportedRow, NotGrounding, element_rows
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery, Segment

TASK_OF = {"tvg": "tvg", "epm": "tvg", "tal": "tal", "evs": "tal", "vhd": "tal"}
FORMAT_SENTENCE = "The format of your response should be"
"""From here on a question prescribes its own form of answer; ours is in the prompt template."""


def read_et_bench(path: Path) -> Iterator[ImportedRow]:
    """etbench_txt_v1.0.json or a file of one task: a JSON list of {version, idx, task, source, video, duration,
    tgt: [[start_s, end_s], …], q, …}.

    Ids count rows, since `idx` starts anew in every task. A highlight has a list of segments from each annotator; the
    truth is all of them, which the rule `overlapping` merges.
    """
    return element_rows(path, lambda row, number: read_bench_row(row, path, number))


def read_et_instruct(path: Path) -> Iterator[ImportedRow]:
    """et_instruct_164k_txt.json: a JSON list of {task, source, video, duration, tgt: [start_s, end_s, start_s, …],
    conversations: [{from: human, value}, {from: gpt, value}]}."""

    def parse(row: dict[str, Any], number: int) -> GroundingQuery:
        task = _task(row)
        times = required(row, "tgt")
        is_pairs = isinstance(times, list) and len(times) % 2 == 0
        expect(is_pairs, "tgt", times, "start and end times in turn, as many of each")
        pairs = [list(pair) for pair in zip(times[::2], times[1::2], strict=True)]
        return _query(row, path, number, task, _asked(row), read_pairs(pairs, "tgt"))

    return element_rows(path, parse)


def is_bench_row(row: dict[str, Any]) -> bool:
    return "tgt" in row or "q" in row


def read_bench_row(row: dict[str, Any], path: Path, number: int) -> GroundingQuery:
    """
    Raises:
        NotGrounding: its task is another one.
        DataError: it is malformed.
    """
    return _query(row, path, number, _task(row), text(row, "q"), read_pairs(_flat(required(row, "tgt")), "tgt"))


def _task(row: dict[str, Any]) -> str:
    task = text(row, "task")
    if task not in TASK_OF:
        raise NotGrounding(f"task {task!r} is not answered by time alone; those that are: {', '.join(TASK_OF)}")
    return TASK_OF[task]


def _query(
    row: dict[str, Any], path: Path, number: int, task: str, question: str, truth: tuple[Segment, ...]
) -> GroundingQuery:
    asked = question.removeprefix("<image>").split(FORMAT_SENTENCE)[0].strip()
    if not asked or "<vid>" in asked:
        raise DataError("the question is empty or has <vid> in place of times; import the file with `txt` in its name")
    return GroundingQuery(
        query_id=query_id(path, number),
        video=video_name(row),
        question=asked,
        segments=truth,
        duration_s=read_duration_s(row.get("duration"), "duration"),
        task=task,
        source=text(row, "source"),
    )


def _asked(row: dict[str, Any]) -> str:
    """The one human turn of a conversation."""
    turns = required(row, "conversations")
    is_turns = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    expect(is_turns, "conversations", turns, "a list of {from, value}")
    asked = [turn for turn in turns if turn.get("from") == "human"]
    expect(len(asked) == 1, "conversations", turns, "one turn from human")
    return text(asked[0], "value")


def _flat(value: Any) -> Any:
    """`[start_s, end_s]` and lists of lists of pairs, one an annotator, as a list of pairs; other things unchanged."""
    if not isinstance(value, list) or not value:
        return value
    if not any(isinstance(part, list) for part in value):
        return [value]
    is_nested = all(isinstance(part, list) and part and isinstance(part[0], list) for part in value)
    return [pair for part in value for pair in part] if is_nested else value
