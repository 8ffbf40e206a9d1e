"""Learners that die while they start, or while the trained model is exported."""

import asyncio
from pathlib import Path

import pytest

from museg_ray.config.schema import PhaseConfig
from museg_ray.errors import LearnerError, LearnerLostError
from museg_ray.events import EventKind
from museg_ray.train.parts import MAX_LEARNER_LOSSES, learner_ready
from tests.train.noting import Run

FOLDER = Path("checkpoint/learner")


class Mortal:
    """Dies in its first starts."""

    def __init__(self, num_deaths: int) -> None:
        self.num_deaths = num_deaths
        self.started: list[Path | str | None] = []

    async def ready(self) -> None:
        self._start("as it was made")

    async def restart(self, checkpoint: Path | None) -> None:
        self._start(checkpoint)

    def _start(self, what: Path | str | None) -> None:
        self.started.append(what)
        if len(self.started) <= self.num_deaths:
            raise LearnerLostError("a learner process died")


def start(learner: Mortal) -> list[EventKind]:
    kinds: list[EventKind] = []
    asyncio.run(learner_ready(learner, FOLDER, lambda kind, text, **fields: kinds.append(kind)))
    return kinds


def test_a_learner_that_dies_while_it_starts_starts_again_from_the_same_checkpoint() -> None:
    learner = Mortal(MAX_LEARNER_LOSSES - 1)
    assert start(learner) == [EventKind.LOSS] * (MAX_LEARNER_LOSSES - 1)
    assert learner.started == ["as it was made", *[FOLDER] * (MAX_LEARNER_LOSSES - 1)]


def test_a_learner_that_dies_in_each_start_ends_the_run() -> None:
    with pytest.raises(LearnerError, match=f"lost {MAX_LEARNER_LOSSES} times .*a learner process died"):
        start(Mortal(MAX_LEARNER_LOSSES))


def test_a_learner_that_dies_in_the_export_takes_training_back_and_exports_what_is_trained_again(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    run = Run(tmp_path, tiny_model_dir, [PhaseConfig("only", 2, "{question}")], set())
    exported = Mortal(1)
    run.to_end(exported.ready)
    assert exported.started == ["as it was made"] * 2
    assert run.parts.num_restarts == 1 and run.parts.steps == [1, 2, 1, 2]
