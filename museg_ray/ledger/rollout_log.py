"""Every response that was sampled for a step: `rollouts.parquet`, one row a response."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from museg_ray.append_log import not_written, refuse_link
from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.errors import CheckpointError
from museg_ray.files import sync, whole_file
from museg_ray.types import Group, RewardParts, Segment, Unscored

_SEGMENTS = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64())]))

_SPANS = pa.list_(pa.struct([("version", pa.int64()), ("num_tokens", pa.int32())]))

_REWARDS = {
    f"reward_{name.removesuffix('_match')}": name
    for name in ("total", "matching", "global_match", "local_match", "timestamp", "format")
}
"""Column -> field of `RewardParts`."""

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
        *(pa.field(name, pa.float64()) for name in _REWARDS),
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
    size_bytes: int = 0
    """Of these parts. They never change once they are written, so that what was lost or cut shows in the sum."""


class RolloutLog:
    """A Parquet data set that only grows, and that a crash leaves readable.

    `rollouts.parquet` is a folder of part files, the usual layout of a data set that grows: `pyarrow` and `pandas`
    read it by its name. One file would be unreadable until its footer is written at the end of the run. A part is
    written whole every `STEPS_PER_PART` steps, so a killed run loses at most the steps since, and at every mark.
    """

    def __init__(self, path: Path) -> None:
        """Open it behind the parts that are there.

        Args:
            path: the folder, made where it is not there.

        Raises:
            ResourceError: it cannot be made.
        """
        self.path = path
        refuse_link(path)
        self._steps: list[pa.RecordBatch] = []  # in no part yet
        self._num_parts = self._size_bytes = 0
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(path, error) from error
        self._open()

    def append(self, groups: Sequence[Group]) -> None:
        """Add the responses of one optimiser step.

        Raises:
            ResourceError: disk full and the like.
        """
        rows = [row for group in groups for row in _response_rows(group)]
        self._steps.append(pa.RecordBatch.from_pylist(rows, schema=ROLLOUT_SCHEMA))
        if len(self._steps) == STEPS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Write the steps that are in no part yet.

        Raises:
            ResourceError: disk full and the like.
        """
        table = pa.Table.from_batches(self._steps, schema=ROLLOUT_SCHEMA)
        if table.num_rows:
            part = self.path / _name(self._num_parts)
            try:
                with whole_file(part) as partial:
                    pq.write_table(table, partial)
                    sync(partial)
            except OSError as error:
                raise not_written(part, error) from error
            self._num_parts, self._size_bytes = self._num_parts + 1, self._size_bytes + part.stat().st_size
        self._steps = []

    def mark(self) -> PartsMark:
        """Where it stands; all of it is on the disk when this returns.

        Raises:
            ResourceError: disk full and the like.
        """
        self.flush()
        try:
            sync(self.path)
        except OSError as error:
            raise not_written(self.path, error) from error
        return PartsMark(self._num_parts, self._size_bytes)

    def check(self, mark: PartsMark) -> list[Path]:
        """Make sure that the parts up to `mark` are as they were; their paths.

        Raises:
            CheckpointError: some are missing, or hold less or more.
        """
        kept = [self.path / _name(index) for index in range(mark.num_parts)]
        size_bytes = sum(part.stat().st_size for part in kept if part.is_file())
        if size_bytes != mark.size_bytes:
            raise CheckpointError(
                f"{self.path} holds {size_bytes} bytes in its parts up to the checkpoint, where it held "
                f"{mark.size_bytes} then. Files of it were changed or lost: restore them, or start a new run from "
                "`museg export CHECKPOINT MODEL_DIR`."
            )
        return kept

    def rewind(self, mark: PartsMark) -> None:
        """Drop what came after `mark`. May be done twice.

        Raises:
            CheckpointError: as `check`.
        """
        for part in set(_parts(self.path).values()) - set(self.check(mark)):
            part.unlink()
        self._open()

    def _open(self) -> None:
        self._steps = []
        parts = _parts(self.path)
        self._num_parts = max(parts, default=-1) + 1
        self._size_bytes = sum(part.stat().st_size for part in parts.values())


def _name(index: int) -> str:
    return f"part-{index:06d}.parquet"


def _parts(folder: Path) -> dict[int, Path]:
    """By number, which counts from 0."""
    matches = ((_PART.fullmatch(path.name), path) for path in folder.iterdir() if not path.is_symlink())
    return {int(match[1]): path for match, path in matches if match}


def _response_rows(group: Group) -> list[dict[str, Any]]:
    issue, query = group.issue, group.query
    advantages = group.advantages.tolist() or [math.nan] * len(group.responses)
    truth = _segment_structs(query.segments)
    return [
        {
            "step": issue.step,
            "phase": issue.phase,
            "issue_id": issue.issue_id,
            "query_id": query.query_id,
            "question": query.question,
            "truth": truth,
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
        **{column: getattr(outcome, name) for column, name in _REWARDS.items()},
        **{f"reward_{name}": value for name, value in outcome.extras},
    }


def _segment_structs(segments: Sequence[Segment]) -> list[dict[str, float]]:
    return [{"start_s": start_s, "end_s": end_s} for start_s, end_s in segments]
