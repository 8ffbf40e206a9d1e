"""The rollout crew sizes itself from who waits for whom, and does not swing."""

from pathlib import Path
from typing import Any

import pytest

from museg_ray.append_log import read_rows
from museg_ray.config.schema import AutoscaleConfig, Config, PhaseConfig, RolloutConfig
from museg_ray.config.validate import validate
from museg_ray.errors import ConfigError
from museg_ray.fleet.member import CrewStatus, MemberStatus
from museg_ray.metrics import names
from museg_ray.runs.events import Events
from museg_ray.train.autoscale import WINDOW_STEPS, Autoscaler


class Rollouts:
    """A crew of a size."""

    def __init__(self, size: int) -> None:
        self.size = self.num_serving = size

    def resize(self, size: int) -> None:
        self.size = size

    def status(self) -> CrewStatus:
        return CrewStatus(self.size, 0, 0, [MemberStatus(str(i), "serving", 1.0, 0) for i in range(self.num_serving)])


def after(waited_s: float, ready: float, num_steps: int, rollouts: Rollouts, folder: Path, most: int = 4) -> list[Any]:
    """The events of so many steps of ten seconds."""
    config = Config(rollout=RolloutConfig(num_actors=rollouts.size, autoscale=AutoscaleConfig(1, most)))
    events = Events(folder / "events.jsonl", lambda kind, text: None)
    scaler = Autoscaler(config, rollouts, events)  # type: ignore[arg-type]
    for _ in range(num_steps):
        scaler.after_step({names.TIME_WAIT_S: waited_s, names.TIME_STEP_S: 10.0, names.QUEUE_LEARNER: ready})
        rollouts.num_serving = rollouts.size
    return list(read_rows(folder / "events.jsonl"))


def test_one_more_joins_while_the_learner_waits_up_to_the_limit(tmp_path: Path) -> None:
    rollouts = Rollouts(2)
    events = after(5.0, 0.0, 10 * WINDOW_STEPS, rollouts, tmp_path)
    assert rollouts.size == 4
    assert [(event["size"], event["waited_share"]) for event in events] == [(3, 0.5), (4, 0.5)]
    assert "the learner waited for 50% of the last 5 steps" in events[0]["text"]


def test_one_leaves_while_complete_steps_wait_for_the_learner(tmp_path: Path) -> None:
    rollouts = Rollouts(3)
    after(0.0, 1.0, WINDOW_STEPS, rollouts, tmp_path)
    assert rollouts.size == 2


@pytest.mark.parametrize(("waited_s", "ready"), [(1.0, 1.0), (0.0, 0.0)], ids=["in balance", "just in time"])
def test_between_the_limits_nothing_changes(waited_s: float, ready: float, tmp_path: Path) -> None:
    rollouts = Rollouts(3)
    assert after(waited_s, ready, 10 * WINDOW_STEPS, rollouts, tmp_path) == [] and rollouts.size == 3


def test_who_is_still_starting_is_waited_for(tmp_path: Path) -> None:
    rollouts = Rollouts(2)
    rollouts.num_serving = 1
    assert after(5.0, 0.0, 1, rollouts, tmp_path) == []
    config = Config(rollout=RolloutConfig(num_actors=2, autoscale=AutoscaleConfig(1, 4)))
    scaler = Autoscaler(config, rollouts, Events(tmp_path / "e", lambda kind, text: None))  # type: ignore[arg-type]
    rollouts.num_serving = 1
    for _ in range(20):
        scaler.after_step({names.TIME_WAIT_S: 5.0, names.TIME_STEP_S: 10.0, names.QUEUE_LEARNER: 0.0})
    assert rollouts.size == 2


def test_without_a_limit_it_does_nothing(tmp_path: Path) -> None:
    rollouts = Rollouts(2)
    assert after(5.0, 0.0, 20, rollouts, tmp_path, most=0) == []


def test_limits_that_do_not_hold_the_first_size_are_refused() -> None:
    config = Config(rollout=RolloutConfig(num_actors=5, autoscale=AutoscaleConfig(1, 4)))
    config.train.phases = [PhaseConfig("only", 2)]
    with pytest.raises(ConfigError, match=r"rollout\.autoscale needs 1 <= min <= rollout\.num_actors <= max"):
        validate(config)
