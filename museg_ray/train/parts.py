"""The parts that a run joins: what the driver asks of each, and how they are started on Ray.

Whatever obeys these protocols can be trained with: the actors of a cluster, or the fakes of `simulate`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from museg_ray.checkpoints.writer import to_the_end
from museg_ray.config.schema import Config, PhaseConfig, RewardWeights
from museg_ray.ending import cancelled_by_signal
from museg_ray.events import EventSink, no_events
from museg_ray.fleet.control import Control, RayControl
from museg_ray.fleet.deadlines import deadlines
from museg_ray.fleet.member import CrewStatus
from museg_ray.fleet.places import Places
from museg_ray.learner.actor import LearnerHandle
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.rewards.pool import RewardPool
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import RolloutPool
from museg_ray.train.losses import learner_ready
from museg_ray.train.runtime import ray_session
from museg_ray.types import Group, Issue, RewardParts, Unscored
from museg_ray.video.actor import ClipPool
from museg_ray.video.loader import ClipHandle


class CrewPart(Protocol):
    """A part whose members come and go while the run goes on."""

    async def ready(self) -> None:
        """Return once the members of the start serve."""

    def resize(self, size: int) -> None:
        """Have so many members from now on."""

    def status(self) -> CrewStatus: ...

    async def close(self) -> None: ...


class Clips(CrewPart, Protocol):
    num_decoded: int

    def prefetch(self, videos: Iterable[str]) -> None: ...

    async def get(self, video: str, anew: bool = False) -> ClipHandle: ...


class Rollouts(CrewPart, Protocol):
    @property
    def num_waiting(self) -> int: ...

    async def sample(self, issue: Issue, prompt_ids: Sequence[int], clip: ClipHandle, sampling: Sampling) -> Group: ...

    async def publish(self, version: int, weights: Any) -> None:
        """Return once every member that serves has these weights."""


class Rewards(CrewPart, Protocol):
    @property
    def num_waiting(self) -> int: ...

    async def score(self, group: Group, weights: RewardWeights) -> tuple[RewardParts | Unscored, ...]: ...


class LearnerPart(Protocol):
    @property
    def doing(self) -> str:
        """What is awaited of it and since when, in words; empty: nothing is."""

    async def ready(self) -> None: ...

    async def restart(self, checkpoint: Path | None) -> None: ...

    async def update(self, groups: Sequence[Group], clips: Mapping[str, ClipHandle], step: int) -> dict[str, float]: ...

    async def score(self, groups: Sequence[Group], clips: Mapping[str, ClipHandle]) -> dict[str, float]: ...

    async def export_weights(self, version: int) -> Any:
        """The present weights, as `Rollouts.publish` takes them; they are called `version` from now on."""

    async def start_phase(self, phase: PhaseConfig) -> None: ...

    async def begin_checkpoint(self, folder: Path) -> None: ...

    async def finish_checkpoint(self) -> None: ...

    async def export_model(self, out_dir: Path) -> None: ...

    async def ping(self) -> None:
        """Raises LearnerLostError where it is gone."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """All of one run. The driver knows them; they know neither it nor one another."""

    tokenizer: PreTrainedTokenizerBase
    clips: Clips
    rollouts: Rollouts
    rewards: Rewards
    learner: LearnerPart
    control: Control
    free_resources: Callable[[], Mapping[str, float]]
    """CPUs and GPUs that nobody has reserved."""

    @property
    def crews(self) -> dict[str, CrewPart]:
        return {"rollout": self.rollouts, "reward": self.rewards, "clips": self.clips}

    async def ready(self, checkpoint: Path | None = None, events: EventSink = no_events) -> None:
        """
        Args:
            checkpoint: that the learner was made with.
            events: are told of learners that are lost meanwhile.

        Raises:
            MusegError: a part did not start.
        """
        waits = [crew.ready() for crew in self.crews.values()]
        tasks = [asyncio.ensure_future(wait) for wait in (*waits, learner_ready(self.learner, checkpoint, events))]
        try:
            await asyncio.gather(*tasks)
        finally:  # else a learner would be started again while all is closed
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        await asyncio.gather(*(part.close() for part in (self.clips, self.rewards, self.rollouts, self.learner)))


StartParts = Callable[[Config, Path, Path, Path | None, EventSink], AbstractAsyncContextManager[Parts]]
"""(configuration, run folder, model folder, `learner` folder of a checkpoint or None, sink of events) -> the parts for
the length of a run: made, not yet ready, and closed at its end."""


@asynccontextmanager
async def start_on_ray(
    config: Config, run_dir: Path, model_dir: Path, checkpoint: Path | None, events: EventSink
) -> AsyncIterator[Parts]:
    """The parts as actors, on the cluster that the run is in or on a Ray of its own.

    Args:
        config: of the run.
        run_dir: whose name the run has on the cluster.
        model_dir: what the engines start from.
        checkpoint: what the learner goes on from; the engines hold the weights of the model folder also then.

    Raises:
        ResourceError: Ray cannot start, or the cluster is too small.
    """
    # Absolute here, in the driver: the actors' working folders are others.
    store_dir = str(Path(config.video.store_dir).absolute())
    config = replace(config, video=replace(config.video, store_dir=store_dir))
    with ray_session(config), cancelled_by_signal():
        places = Places(config, events)
        await places.reserve()
        control = RayControl(run_dir, deadlines(config))
        parts = Parts(
            tokenizer=load_tokenizer(model_dir),
            clips=ClipPool(config, events, places=places),
            rollouts=RolloutPool(config, model_dir, events, places=places),
            rewards=RewardPool(config, events, places=places),
            learner=LearnerHandle(config, model_dir, checkpoint, places),
            control=control,
            free_resources=places.free,
        )
        try:
            yield parts
        finally:
            await to_the_end(parts.close())
            control.close()
