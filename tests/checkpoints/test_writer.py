"""Checkpoints beside training: one at a time, and no failure is lost."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.checkpoints.writer import Checkpointer, check_best_metric
from museg_ray.config.load import load_config
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import CheckpointError, ConfigError, LearnerError, ResourceError
from museg_ray.events import no_events
from tests.checkpoints.test_folder import RUN_ID, state, steps_of
from tests.train.fake_learner import FakeLearner
from tests.train.script import Script


@pytest.fixture
def config() -> Config:
    config = Config()
    config.train.phases = [PhaseConfig("only", 10)]
    config.checkpoint.every_steps = 4
    return config


Start = Callable[[], tuple[Checkpointer, FakeLearner]]


@pytest.fixture
def start(config: Config, tmp_path: Path) -> Start:
    def start() -> tuple[Checkpointer, FakeLearner]:
        learner = FakeLearner(Script())
        return Checkpointer(config, tmp_path, learner, no_events, RUN_ID), learner  # type: ignore[arg-type]

    return start


def test_they_are_due_every_so_many_steps_and_at_the_last_one(config: Config, start: Start) -> None:
    checkpointer, _ = start()
    assert [step for step in range(1, 11) if checkpointer.is_due(step)] == [4, 8, 10]
    config.checkpoint.every_steps = 0
    assert [step for step in range(1, 11) if checkpointer.is_due(step)] == [10]


def test_training_goes_on_while_one_is_written_and_it_holds_what_was_then(start: Start, tmp_path: Path) -> None:
    checkpointer, learner = start()
    learner.weight = 4.0

    async def train() -> None:
        await checkpointer.begin(state(4))
        assert steps_of(checkpointer.folder) == []
        learner.weight = 5.0
        await checkpointer.finish()

    asyncio.run(train())
    (whole,) = checkpoints.list_checkpoints(tmp_path / "checkpoints")
    checkpoints.verify(whole)
    assert FakeLearner(Script(), whole.learner_dir).weight == 4.0
    assert load_config(whole.config_path).total_steps == 10
    assert whole.read_state() == state(4)


def test_the_next_one_waits_for_the_one_before(start: Start) -> None:
    checkpointer, _ = start()

    async def train() -> None:
        await checkpointer.begin(state(4))
        await checkpointer.begin(state(8))
        assert steps_of(checkpointer.folder) == [4]
        await checkpointer.finish()
        assert steps_of(checkpointer.folder) == [4, 8]

    asyncio.run(train())


def full_disk_of(learner: FakeLearner) -> Callable[[Path], Coroutine[Any, Any, None]]:
    """A `begin_checkpoint` whose files cannot be written."""

    async def fail() -> None:
        raise LearnerError("rank 0 could not write: No space left on device")

    async def begin(folder: Path) -> None:
        learner._writing = asyncio.create_task(fail())

    return begin


async def _begin_and_wait(checkpointer: Checkpointer) -> None:
    await checkpointer.begin(state(4))
    await asyncio.sleep(0.2)  # it has ended by now


@pytest.mark.parametrize("told_by", ["step", "next", "finish"])
def test_a_failure_of_the_learner_is_told_at_the_next_occasion(told_by: str, start: Start) -> None:
    checkpointer, learner = start()
    learner.begin_checkpoint = full_disk_of(learner)  # type: ignore[method-assign]

    async def train() -> None:
        await _begin_and_wait(checkpointer)
        with pytest.raises(LearnerError, match="No space left"):
            if told_by == "step":
                checkpointer.raise_if_failed()
            elif told_by == "next":
                await checkpointer.begin(state(8))
            else:
                await checkpointer.finish()
        assert await checkpointer.close() is None, "once is enough"
        assert steps_of(checkpointer.folder) == []

    asyncio.run(train())


def test_a_failure_that_nobody_asked_for_is_told_at_the_end(start: Start) -> None:
    checkpointer, learner = start()
    learner.begin_checkpoint = full_disk_of(learner)  # type: ignore[method-assign]

    async def train() -> None:
        await _begin_and_wait(checkpointer)
        assert isinstance(await checkpointer.close(), LearnerError)

    asyncio.run(train())


def test_a_full_disk_is_told_with_what_to_do(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer, _ = start()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    async def train() -> None:
        monkeypatch.setattr(checkpoints, "sync", full)
        await checkpointer.begin(state(4))
        with pytest.raises(ResourceError, match=r"step-000004.partial could not be written: No space left.*--resume"):
            await checkpointer.finish()

    asyncio.run(train())


def test_one_that_is_given_up_half_way_is_never_taken_for_whole(start: Start) -> None:
    checkpointer, _ = start()

    async def train() -> None:
        await checkpointer.begin(state(4))
        await asyncio.sleep(0)
        assert await checkpointer.close() is None

    asyncio.run(train())
    assert steps_of(checkpointer.folder) == []
    checkpoints.remove_leftovers(checkpointer.folder, RUN_ID)
    assert list(checkpointer.folder.iterdir()) == []


def test_one_that_is_under_way_when_a_run_fails_becomes_whole(start: Start) -> None:
    checkpointer, _ = start()

    async def train() -> None:
        await checkpointer.begin(state(4))
        await asyncio.sleep(0)
        assert await checkpointer.close(finish=True) is None

    asyncio.run(train())
    assert steps_of(checkpointer.folder) == [4]


def test_a_learner_that_was_lost_goes_on_from_the_newest_one_that_is_whole(start: Start) -> None:
    checkpointer, _ = start()

    async def train() -> None:
        assert await checkpointer.newest() is None
        for step in (4, 8):
            await checkpointer.begin(state(step))
            await checkpointer.finish()
        await checkpointer.begin(state(10))  # given up
        for step in (8, 4):
            newest = await checkpointer.newest()
            assert newest is not None and newest.step == step
            (newest.learner_dir / "learner.json").unlink()
        with pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole\. .*step 8 .*step 4"):
            await checkpointer.newest()

    asyncio.run(train())


def test_the_metric_of_the_best_one_must_be_a_metric(config: Config) -> None:
    check_best_metric(config)
    config.checkpoint.best_metric = "reward/matchin"
    with pytest.raises(ConfigError, match=r"checkpoint\.best_metric is 'reward/matchin'"):
        check_best_metric(config)
