"""Every response that was sampled for a step: `rollouts.parquet`, one row a response."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.errors import CheckpointError
from museg_ray.files import sync, whole_file
from museg_ray.types import Group, RewardParts, Segment, Unscored

_SEGMENTS = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())]))

_SPANS = pa.list_(pa.struct([("version", pa.int64()), ("num_tokens", pa.int32())]))

ROLLOUT_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("issue_id", pa.int64(), nullable=False),
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
        pa.field("weight_version", pa.int64(), nullable=False),  # that the group was begun with
        pa.field("spans", _SPANS, nullable=False),  # empty: all its tokens are of `weight_version`
    ]
)

STEPS_PER_PART = 10
_PART = re.compile(r"part-(\d{6,})\.parquet")


@dataclass(frozen=True, slots=True)
class PartsMark:
    """How far the log went."""

    num_parts: int = 0
    num_rows: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class RolloutLog:
    """A Parquet data set that only grows, and that a crash leaves readable.

    `rollouts.parquet` is a folder of part files, the usual layout of a data set that grows: `pyarrow` and `pandas`
    read it by its name. One file would be unreadable until its footer is written at the end of the run. A part is
    written whole every `STEPS_PER_PART` steps, so a killed run loses at most the steps since, and at every mark.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._rows: list[dict[str, Any]] = []  # in no part yet
        self._num_steps = self._num_parts = self._num_rows = 0
        self._open()

    def append(self, groups: Sequence[Group]) -> None:
        """Add the responses of one optimiser step."""
        self._rows += [row for group in groups for row in _response_rows(group)]
        self._num_steps += 1
        if self._num_steps == STEPS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write the steps that are in no part yet."""
        if not self._rows:
            return
        part = self.path / f"part-{self._num_parts:06d}.parquet"
        with whole_file(part) as partial:
            pq.write_table(pa.Table.from_pylist(self._rows, schema=ROLLOUT_SCHEMA), partial)
            sync(partial)
        self._num_parts, self._num_rows = self._num_parts + 1, self._num_rows + len(self._rows)
        self._rows, self._num_steps = [], 0

    def mark(self) -> PartsMark:
        """Where it stands; all of it is on the disk when this returns."""
        self.flush()
        sync(self.path)
        return PartsMark(self._num_parts, self._num_rows)

    def rewind(self, mark: PartsMark) -> None:
        """Drop what came after `mark`. May be done twice.

        Raises:
            CheckpointError: parts are missing that were there then.
        """
        parts = _parts(self.path)
        num_rows = sum(pq.read_metadata(part).num_rows for part in parts[: mark.num_parts])
        if (min(len(parts), mark.num_parts), num_rows) != (mark.num_parts, mark.num_rows):
            raise CheckpointError(
                f"{self.path} holds {num_rows} responses up to the checkpoint, where it held {mark.num_rows}. Files of "
                "it were changed or lost: restore them, or start a new run from `museg export CHECKPOINT MODEL_DIR`."
            )
        for part in parts[mark.num_parts :]:
            part.unlink()
        self._open()

    def _open(self) -> None:
        parts = _parts(self.path)
        self._rows = []
        self._num_steps, self._num_parts = 0, len(parts)
        self._num_rows = sum(pq.read_metadata(part).num_rows for part in parts)


def _parts(folder: Path) -> list[Path]:
    """In the order in which they were written."""
    return sorted(path for path in folder.glob("*.parquet") if _PART.fullmatch(path.name))


def _response_rows(group: Group) -> list[dict[str, Any]]:
    issue, query = group.issue, group.query
    advantages = group.advantages.tolist() or [math.nan] * len(group.responses)
    return [
        {
            "step": issue.step,
            "phase": issue.phase,
            "issue_id": issue.issue_id,
            "query_id": query.query_id,
            "question": query.question,
            "truth": _segment_structs(query.segments),
            "response_index": index,
            "text": response.text,
            **_reward_columns(outcome),
            "advantage": None if math.isnan(advantage) else advantage,
            "num_tokens": len(response.token_ids),
            "finished": response.finished,
            "weight_version": group.weight_version,
            "spans": [span._asdict() for span in response.spans],
        }
        for index, (response, outcome, advantage) in enumerate(
            zip(group.responses, group.outcomes, advantages, strict=True)
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
