"""A run's parts without a cluster: real crews and pools over fake workers and a fake learner."""

import math
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from museg_ray.config.schema import Config
from museg_ray.events import EventSink
from museg_ray.fleet.control import Mailbox
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.rewards.pool import RewardPool
from museg_ray.rollout.pool import RolloutPool
from museg_ray.train.parts import Parts, StartParts
from museg_ray.video.actor import ClipPool
from tests.train.fake_learner import FakeLearner, FakeWeights
from tests.train.fake_workers import FakeEngine, FakePreparer, FakeScorer
from tests.train.script import Script

W = TypeVar("W")


def fake_start(script: Script, unreadable: Collection[str] = ()) -> StartParts:
    """For `run(config, start=...)`.

    Args:
        script: is asked at every moment of every part.
        unreadable: names of video files that cannot be read.
    """

    @asynccontextmanager
    async def start(
        config: Config, run_dir: Path, model_dir: Path, checkpoint: Path | None, events: EventSink
    ) -> AsyncIterator[Parts]:
        parts = fake_parts(config, model_dir, checkpoint, events, script, unreadable)
        try:
            yield parts
        finally:
            await parts.close()

    return start


def fake_parts(
    config: Config,
    model_dir: Path,
    checkpoint: Path | None,
    events: EventSink,
    script: Script,
    unreadable: Collection[str] = (),
) -> Parts:
    """To be made and used on one event loop."""
    engines = _named("engine", lambda name: FakeEngine(script, name, config.rollout))
    scorers = _named("scorer", lambda name: FakeScorer(script, name))
    preparers = _named("preparer", lambda name: FakePreparer(script, name, frozenset(unreadable)))
    learner = FakeLearner(script, checkpoint)
    return Parts(
        tokenizer=_tokenizer(model_dir),
        clips=ClipPool(config, events, preparers),
        rollouts=RolloutPool(config, model_dir, events, engines),
        rewards=RewardPool(config, events, lambda _num_cpus, _place: scorers()),
        learner=learner,
        weights=FakeWeights(script, learner),
        control=Mailbox(),
        free_resources=lambda: {"CPU": math.inf, "GPU": math.inf},
    )


@cache
def _tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    """Once a process: simulations start thousands of runs."""
    return load_tokenizer(model_dir)


def _named(role: str, make: Callable[[str], W]) -> Callable[[], W]:
    numbers = count()
    return lambda: make(f"{role}-{next(numbers)}")
