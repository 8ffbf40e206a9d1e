"""What the driver keeps in a checkpoint, beside the learner's state: `driver.json`."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from museg_ray.append_log import Watermark
from museg_ray.data.sampler import SamplerState
from museg_ray.errors import (
    CheckpointError,
    PoisonQueryError,
    QueryError,
    Unfit,
    UnfitQueryError,
    VideoError,
    VideoFault,
)
from museg_ray.ledger.rollout_log import PartsMark

STATE_FORMAT = 3


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Where the steps stand after one of them."""

    step: int
    """The last one that was made."""
    phase: str
    """Its phase."""
    weight_version: int
    """That of the rollout actors after it."""
    issued_step: int
    """The last one whose queries were issued; above `step` where rollouts work ahead."""
    sampler_states: dict[str, SamplerState]
    """Of all samplers after the draw of `issued_step`, by annotation file; those in memory are ahead of it."""
    refill_states: dict[str, SamplerState]
    """Of the samplers of queries that take the place of others."""
    num_empty: int
    """Steps in a row, up to this one, without a group."""
    untold: list[tuple[str, str]]
    """(fault, message) of the queries without a group that no result has told of yet."""

    def untold_failures(self) -> list[QueryError]:
        return [_failure(fault, message) for fault, message in self.untold]


def as_untold(failures: Sequence[QueryError]) -> list[tuple[str, str]]:
    """For `TrainerState.untold`."""
    return [(str(error.fault), str(error)) for error in failures]


def _failure(fault: str, message: str) -> QueryError:
    if fault in list(VideoFault):
        return VideoError(message, VideoFault(fault))
    return UnfitQueryError(message, Unfit(fault)) if fault in list(Unfit) else PoisonQueryError(message)


@dataclass(slots=True)
class Notes:
    """What the summary needs and only the run sees; it goes on where a resumed run goes on."""

    wall_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took, those of the runs before included, up to the checkpoint they were resumed from."""
    num_updates: int = 0
    num_gaps: int = 0
    """Updates with tokens of the learner's own weights, whose log-probs could be compared."""
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

    def go_back(self, earlier: "Notes") -> None:
        """Count what a checkpoint has; the time that was spent is spent."""
        self.num_updates, self.num_responses = earlier.num_updates, earlier.num_responses
        self.rollout_s = earlier.rollout_s
        self.num_gaps, self.gap_sum, self.gap_max = earlier.num_gaps, earlier.gap_sum, earlier.gap_max

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"wall_s": self.seconds()}
        del values["_running"]
        return values


@dataclass(frozen=True, slots=True)
class BookMarks:
    """How far every book went."""

    metrics: Watermark = field(default_factory=Watermark)
    alarms: Watermark = field(default_factory=Watermark)
    quarantine: Watermark = field(default_factory=Watermark)
    ledger: Watermark = field(default_factory=Watermark)
    rollouts: PartsMark = field(default_factory=PartsMark)


@dataclass(frozen=True, slots=True)
class DriverState:
    """All of `driver.json`."""

    trainer: TrainerState
    books: BookMarks
    best_metric: str
    score: float | None
    """Mean of `best_metric` over the steps since the checkpoint before; None where no step had it."""
    notes: dict[str, Any]
    """`Notes.as_dict`."""
    run_id: str = ""
    """Of the run that made it, as the run's folder has it."""

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
            untold = [(fault, message) for fault, message in values["trainer"]["untold"]]
            trainer = TrainerState(**values["trainer"] | {"untold": untold})
            rollouts = PartsMark(**values["books"].pop("rollouts"))
            books = BookMarks(rollouts=rollouts, **{name: Watermark(**mark) for name, mark in values["books"].items()})
            return DriverState(**values | {"trainer": trainer, "books": books})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    raise CheckpointError(f"{path} is of format {found}; this version of museg_ray reads {STATE_FORMAT}.")
