"""The parts that a run joins: what the driver asks of each, and how they are started on Ray.

Fakes take the place of the actors behind them: workers of crews, or of all of `LearnerHandle`.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from museg_ray.checkpoints.writer import to_the_end
from museg_ray.config.schema import Config
from museg_ray.ending import cancelled_by_signal
from museg_ray.errors import LearnerError, LearnerLostError
from museg_ray.events import EventKind, EventSink, no_events
from museg_ray.fleet.control import Mailbox, RayControl
from museg_ray.fleet.crew import CrewPool
from museg_ray.fleet.deadlines import deadlines
from museg_ray.fleet.places import Places
from museg_ray.learner.actor import LearnerHandle
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.rewards.pool import RewardPool
from museg_ray.rollout.pool import RolloutPool
from museg_ray.train.runtime import ray_session
from museg_ray.video.actor import ClipPool
from museg_ray.weights.channel import WeightChannel
from museg_ray.weights.shared import SharedWeights

MAX_LEARNER_LOSSES = 3


@dataclass(frozen=True, slots=True)
class Parts:
    """All of one run. The driver knows them; they know neither it nor one another."""

    tokenizer: PreTrainedTokenizerBase
    clips: ClipPool
    rollouts: RolloutPool
    rewards: RewardPool
    learner: LearnerHandle
    weights: WeightChannel
    control: RayControl | Mailbox
    """The mailbox of wishes; itself where the driver has it in its own process."""
    free_resources: Callable[[], Mapping[str, float]]
    """CPUs and GPUs that nobody has reserved."""

    @property
    def crews(self) -> dict[str, CrewPool[Any]]:
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
            await self.weights.reserve(self.rollouts.nodes)
        finally:  # else a learner would be started again while all is closed
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        parts = (self.clips, self.rewards, self.rollouts, self.learner, self.weights)
        await asyncio.gather(*(part.close() for part in parts))


async def learner_ready(learner: LearnerHandle, checkpoint: Path | None, events: EventSink) -> None:
    """Wait until the learner is up; ranks that die meanwhile are started anew.

    Args:
        learner: made with `checkpoint`.
        checkpoint: its `learner` folder, or None.
        events: are told of losses.

    Raises:
        LearnerError: it died too often.
        MusegError: it cannot start.
    """
    start: Callable[[], Awaitable[None]] = learner.ready
    for num_losses in itertools.count(1):
        try:
            return await start()
        except LearnerLostError as error:
            check_learner_losses(num_losses, error)
            events(EventKind.LOSS, f"the learner is lost while it starts: {error}", role="learner")
        start = partial(learner.restart, checkpoint)


def check_learner_losses(num_losses: int, error: LearnerLostError) -> None:
    """
    Raises:
        LearnerError: it died so often in a row without a step of progress.
    """
    if num_losses >= MAX_LEARNER_LOSSES:
        raise LearnerError(
            f"The learner was lost {num_losses} times without a step of progress between; the last time: {error}"
        ) from error


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
        learner = LearnerHandle(config, model_dir, checkpoint, places)
        parts = Parts(
            tokenizer=load_tokenizer(model_dir),
            clips=ClipPool(config, events, places=places),
            rollouts=RolloutPool(config, model_dir, events, places=places),
            rewards=RewardPool(config, events, places=places),
            learner=learner,
            weights=SharedWeights(config, learner),
            control=control,
            free_resources=places.free,
        )
        try:
            yield parts
        finally:
            await to_the_end(parts.close())
            control.close()
