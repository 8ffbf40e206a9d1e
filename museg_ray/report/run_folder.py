"""Reads a run folder, finished or not: what is absent is empty here, and named in `RunFolder.missing`."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from museg_ray.append_log import read_rows
from museg_ray.errors import DataError, VideoFault
from museg_ray.events import EventKind
from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm

Answer = Mapping[str, Any]
"""A greedy answer to one held-out query: a row of `evaluation/*.jsonl`. `predicted` is empty when it was invalid."""


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """The steps of one phase that have finished, first and last included."""

    name: str
    first_step: int
    last_step: int


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What one run has written."""

    path: Path
    config_yaml: str
    planned_steps: int
    rows: Sequence[Mapping[str, Any]]
    """metrics.jsonl, one a finished step."""
    summary: Mapping[str, Any]
    """summary.json; empty until the run ends."""
    before: Mapping[str, Answer]
    """Answers by query id, before training."""
    after: Mapping[str, Answer]
    alarms: Sequence[Alarm]
    """In the order in which they were raised; one that came back is there again."""
    events: Sequence[Mapping[str, Any]]
    """events.jsonl: joins, losses, scalings and the like, in the order in which they happened."""
    quarantined: Sequence[Mapping[str, Any]]
    """quarantine.jsonl: responses that could not be scored, and, with a `fault`, queries that were set aside."""
    alarm_window_steps: int
    """Steps that an alarm looks at; 0: the run watched for none."""

    @property
    def missing(self) -> list[str]:
        """What an unfinished run lacks, in words."""
        lacks = [
            (len(self.rows) < self.planned_steps, f"steps ({len(self.rows)} of {self.planned_steps} are done)"),
            (not self.before, "the evaluation before training"),
            (not self.after, "the evaluation after training"),
            (not self.summary, "the summary"),
        ]
        return [what for is_missing, what in lacks if is_missing]

    @property
    def num_unreadable(self) -> int:
        """Queries whose video could not be read."""
        return int(self.series(names.VIDEO_UNREADABLE)[1].sum())

    @property
    def unfit(self) -> Counter[str]:
        """Queries that were set aside for another reason than their video, by fault."""
        videos = set(VideoFault)
        return Counter(row["fault"] for row in self.quarantined if row.get("fault", "missing") not in videos)

    @property
    def differing(self) -> Counter[str]:
        """Queries whose truth or length is not that of the video file, by rule; a resumed run tells of them again."""
        told = {event["text"]: event["rule"] for event in self.events if event["kind"] == EventKind.TRUTH}
        return Counter(told.values())

    @property
    def num_unscored(self) -> int:
        """Responses that could not be scored; their texts are in quarantine.jsonl."""
        return int(self.series(names.REWARD_QUARANTINED)[1].sum())

    @property
    def phases(self) -> list[PhaseSpan]:
        """The phases that have finished steps, in order."""
        spans: list[PhaseSpan] = []
        for row in self.rows:
            first = spans.pop().first_step if spans and spans[-1].name == row["phase"] else row["step"]
            spans.append(PhaseSpan(row["phase"], first, row["step"]))
        return spans

    def series(self, metric: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Steps [N] and values [N] of one metric, over the steps that recorded it."""
        points = [(row["step"], row[metric]) for row in self.rows if metric in row]
        return np.array([step for step, _ in points], np.int64), np.array([value for _, value in points], np.float64)

    def last_rollouts(self, phase: str) -> list[dict[str, Any]]:
        """Rows of rollouts.parquet of the last step of a phase that was written; none where none was."""
        parts = self.path / "rollouts.parquet"
        if not any(parts.glob("*.parquet")):
            return []
        in_phase = pc.field("phase") == phase
        last_step = pc.max(pq.read_table(parts, columns=["step"], filters=in_phase)["step"]).as_py()
        if last_step is None:
            return []
        is_last = in_phase & (pc.field("step") == last_step)
        rows: list[dict[str, Any]] = pq.read_table(parts, filters=is_last).to_pylist()
        return rows


def read_run(run_dir: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        DataError: the folder holds no run.
        CheckpointError: one of its files is damaged; names file and line.
    """
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        raise DataError(
            f"{run_dir} is not a run folder: it has no config.yaml. Give the folder that `museg train` or `museg demo` "
            "wrote, which holds config.yaml and metrics.jsonl."
        )
    config_yaml = config_path.read_text(encoding="utf-8")
    config = yaml.safe_load(config_yaml)
    summary_path = run_dir / "summary.json"
    return RunFolder(
        path=run_dir,
        config_yaml=config_yaml,
        planned_steps=sum(phase["steps"] for phase in config["train"]["phases"]),
        rows=list(read_rows(run_dir / "metrics.jsonl")),
        summary=json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.is_file() else {},
        before=_read_answers(run_dir / "evaluation" / "before.jsonl"),
        after=_read_answers(run_dir / "evaluation" / "after.jsonl"),
        alarms=[Alarm(**row) for row in read_rows(run_dir / "alarms.jsonl")],
        events=list(read_rows(run_dir / "events.jsonl")),
        quarantined=list(read_rows(run_dir / "quarantine.jsonl")),
        # A run from before there were alarms has no such section.
        alarm_window_steps=config.get("alarms", {}).get("window_steps", 0),
    )


def _read_answers(path: Path) -> dict[str, Answer]:
    return {row["query_id"]: row for row in read_rows(path)}
