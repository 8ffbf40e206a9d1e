"""What the driver keeps in a checkpoint, beside the learner's state: `driver.json`."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from museg_ray.data.sampler import SamplerState
from museg_ray.errors import CheckpointError

STATE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Where the steps stand after one of them."""

    step: int
    """The last one that was made."""
    phase: str
    """Its phase."""
    weight_version: int
    """That of the rollout actors after it."""
    sampler_states: dict[str, SamplerState]
    """Of all samplers after the draw of this step, by annotation file; those in memory are ahead of it."""
    num_empty: int
    """Steps in a row, up to this one, without a readable video."""
    unreadable: list[tuple[str, str]]
    """(fault, message) of the queries without a group that no result has told of yet."""


@dataclass(slots=True)
class Notes:
    """What the summary needs and only the run sees; it goes on where a resumed run goes on."""

    wall_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took, those of the runs before included, up to the checkpoint they were resumed from."""
    num_updates: int = 0
    gap_sum: float = 0.0
    """Of the updates' mean log-prob gaps."""
    gap_max: float = 0.0
    num_responses: int = 0
    rollout_s: float = 0.0
    resumed_at_steps: list[int] = field(default_factory=list)
    """The last step of each checkpoint that the run went on from."""
    _running: dict[str, float] = field(default_factory=dict)
    """Stage under way -> its start on the monotonic clock."""

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time of a stage to what it took before."""
        self._running[stage] = time.monotonic()
        try:
            yield
        finally:
            self.wall_s = self.seconds()
            del self._running[stage]

    def seconds(self) -> dict[str, float]:
        """`wall_s` at this moment, with the stages that are under way."""
        now_s = time.monotonic()
        running = {stage: self.wall_s.get(stage, 0.0) + now_s - start_s for stage, start_s in self._running.items()}
        return self.wall_s | running

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"wall_s": self.seconds()}
        del values["_running"]
        return values


@dataclass(frozen=True, slots=True)
class DriverState:
    """All of `driver.json`."""

    trainer: TrainerState
    num_issues: int
    """Issues in the ledger."""
    best_metric: str
    score: float | None
    """Mean of `best_metric` over the steps since the checkpoint before; None where no step had it."""
    notes: dict[str, Any]
    """`Notes.as_dict`."""

    @property
    def step(self) -> int:
        return self.trainer.step

    def to_json(self) -> str:
        return json.dumps({"format": STATE_FORMAT, **asdict(self)}, indent=1)


def read_state(path: Path) -> DriverState:
    """
    Raises:
        CheckpointError: the file cannot be read, or is of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("format")
        if found == STATE_FORMAT:
            return DriverState(**values | {"trainer": _trainer_state(values["trainer"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    raise CheckpointError(f"{path} is of format {found}; this version of museg_ray reads {STATE_FORMAT}.")


def _trainer_state(values: Mapping[str, Any]) -> TrainerState:
    unreadable = [(fault, message) for fault, message in values["unreadable"]]
    return TrainerState(**dict(values) | {"unreadable": unreadable})
