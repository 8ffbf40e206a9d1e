"""The books of a run: what became of every query, and every response that was sampled.

`Ledger` -> `ledger.parquet`, one row an issue of a query; `RolloutLog` -> `rollouts.parquet`, one row a response.
Both are read by the report and by audits; neither touches Ray.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.files import whole_file
from museg_ray.types import GroundingQuery, RewardParts, SampledGroup, Segment, Unscored


class Outcome(StrEnum):
    """How the life of an issued query ends."""

    TRAINED = "trained"
    """The learner updated on its group."""
    FILTERED = "filtered"
    """Its group was left out of the update; the reason is written beside it."""
    FAILED = "failed"
    """No group came of it; the reason is written beside it."""


@dataclass(slots=True)
class _Entry:
    issue_id: int
    query_id: str
    video: str
    step: int
    issued_unix_s: float
    ended_unix_s: float | None = None
    outcome: str | None = None
    reason: str = ""
    weight_version: int | None = None


LEDGER_SCHEMA = pa.schema(
    [
        pa.field("issue_id", pa.int64(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("video", pa.string(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("issued_unix_s", pa.float64(), nullable=False),
        pa.field("ended_unix_s", pa.float64()),
        pa.field("outcome", pa.string()),  # null: still open when the ledger was written
        pa.field("reason", pa.string(), nullable=False),
        pa.field("weight_version", pa.int64()),
    ]
)


class Ledger:
    """Every query from issue to its end.

    Invariant: an issue ends exactly once. Twice would count a group's gradient twice, never would lose a query
    without a trace; both break resume and every audit that sums the rows.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """The ledger that was written there; issues go on after it."""
        ledger = cls()
        ledger._entries = [_Entry(**row) for row in pq.read_table(path, schema=LEDGER_SCHEMA).to_pylist()]
        return ledger

    @property
    def num_issues(self) -> int:
        return len(self._entries)

    def issue(self, query: GroundingQuery, step: int) -> int:
        """Open an issue of `query` for optimiser step `step` (from 1); returns its id, unique within the run."""
        issue_id = len(self._entries)
        self._entries.append(_Entry(issue_id, query.query_id, query.video, step, issued_unix_s=time.time()))
        return issue_id

    def finish(self, issue_id: int, outcome: Outcome, reason: str = "", weight_version: int | None = None) -> None:
        """End an issue.

        Args:
            issue_id: what `issue` returned.
            outcome: trained, or filtered or failed, which need their reason.
            weight_version: weights that sampled the group; None when there was none.
        """
        assert 0 <= issue_id < len(self._entries), f"issue {issue_id} was never opened"
        entry = self._entries[issue_id]
        assert entry.outcome is None, f"issue {issue_id} of {entry.query_id} already ended as {entry.outcome}"
        assert reason or outcome is Outcome.TRAINED, f"issue {issue_id} of {entry.query_id} {outcome} without a reason"
        entry.outcome, entry.reason, entry.weight_version = outcome.value, reason, weight_version
        entry.ended_unix_s = time.time()

    @property
    def open_issues(self) -> tuple[int, ...]:
        """Ids that have not ended; empty after a run that ended well."""
        return tuple(entry.issue_id for entry in self._entries if entry.outcome is None)

    def write(self, path: Path) -> None:
        """Write all issues as Parquet; a reader sees the old file or the new one, never half of one."""
        rows = [asdict(entry) for entry in self._entries]
        write_table(pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA), path)


_SEGMENTS = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())]))

ROLLOUT_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("truth", _SEGMENTS, nullable=False),
        pa.field("response_index", pa.int32(), nullable=False),  # 0 .. G - 1
        pa.field("text", pa.string(), nullable=False),
        pa.field("predicted", _SEGMENTS, nullable=False),
        # null where the response could not be scored
        pa.field("reward_total", pa.float64()),
        pa.field("reward_matching", pa.float64()),
        pa.field("reward_global", pa.float64()),
        pa.field("reward_local", pa.float64()),
        pa.field("reward_timestamp", pa.float64()),
        pa.field("reward_format", pa.float64()),
        # null where the phase does not weigh them
        *(pa.field(f"reward_{name}", pa.float64()) for name in FURTHER_REWARDS),
        pa.field("advantage", pa.float32()),  # null where the response is in no update
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("finished", pa.bool_(), nullable=False),
        pa.field("weight_version", pa.int64(), nullable=False),
    ]
)

STEPS_PER_PART = 10


class RolloutLog:
    """Every response with its rewards, as a Parquet data set that a crash leaves readable.

    `rollouts.parquet` is a folder of part files, the usual layout of a data set that grows: `pyarrow` and `pandas`
    read it by its name. One file would be unreadable until its footer is written at the end of the run. A part is
    written whole every `STEPS_PER_PART` steps, so a killed run loses at most the steps since, and at every checkpoint,
    so that no part holds steps from before and after one.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._steps: list[int] = []

    def append(self, step: int, phase: str, groups: Sequence[SampledGroup]) -> None:
        """Add the responses of one optimiser step."""
        self._rows += [row for sampled in groups for row in _response_rows(step, phase, sampled)]
        self._steps.append(step)
        if len(self._steps) == STEPS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write the steps that are in no part yet."""
        if not self._steps:
            return
        part = self.path / f"steps-{self._steps[0]:06d}-{self._steps[-1]:06d}.parquet"
        write_table(pa.Table.from_pylist(self._rows, schema=ROLLOUT_SCHEMA), part)
        self._rows, self._steps = [], []

    def close(self) -> None:
        """Write what is left."""
        self.flush()


def _response_rows(step: int, phase: str, sampled: SampledGroup) -> list[dict[str, Any]]:
    group, query = sampled.group, sampled.group.query
    return [
        {
            "step": step,
            "phase": phase,
            "query_id": query.query_id,
            "question": query.question,
            "truth": _segment_structs(query.segments),
            "response_index": index,
            "text": response.text,
            **_reward_columns(outcome),
            "advantage": advantage,
            "num_tokens": len(response.token_ids),
            "finished": response.finished,
            "weight_version": group.weight_version,
        }
        for index, (response, outcome, advantage) in enumerate(
            zip(group.responses, sampled.outcomes, sampled.advantages, strict=True)
        )
    ]


def _reward_columns(outcome: RewardParts | Unscored) -> dict[str, Any]:
    if isinstance(outcome, Unscored):
        return {"predicted": []}
    return {
        "predicted": _segment_structs(outcome.predicted),
        "reward_total": outcome.total,
        "reward_matching": outcome.matching,
        "reward_global": outcome.global_match,
        "reward_local": outcome.local_match,
        "reward_timestamp": outcome.timestamp,
        "reward_format": outcome.format,
        **{f"reward_{name}": value for name, value in outcome.extras},
    }


def _segment_structs(segments: Sequence[Segment]) -> list[dict[str, float]]:
    return [{"start_s": start_s, "end_s": end_s} for start_s, end_s in segments]


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file whole or not at all."""
    with whole_file(path) as partial:
        pq.write_table(table, partial)
