"""Losses of the learner: how many are too many, and how it starts in spite of them."""

import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from museg_ray.errors import LearnerError, LearnerLostError, MusegError
from museg_ray.events import EventKind, EventSink

MAX_LEARNER_LOSSES = 3


class Startable(Protocol):
    async def ready(self) -> None: ...

    async def restart(self, checkpoint: Path | None) -> None: ...


async def learner_ready(learner: Startable, checkpoint: Path | None, events: EventSink) -> None:
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


def check_learner_losses(num_losses: int, error: MusegError) -> None:
    """
    Raises:
        LearnerError: it died so often in a row without a step of progress.
    """
    if num_losses >= MAX_LEARNER_LOSSES:
        raise LearnerError(
            f"The learner was lost {num_losses} times without a step of progress between; the last time: {error}"
        ) from error
