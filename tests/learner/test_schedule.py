"""Learning-rate factors."""

import pytest

from museg_ray.learner.schedule import learning_rate_factor


def test_linear_falls_from_one_towards_zero_after_the_last_step() -> None:
    factors = [learning_rate_factor(step, 4, 0, "linear") for step in range(5)]
    assert factors == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_constant_stays_at_one() -> None:
    assert [learning_rate_factor(step, 3, 0, "constant") for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_warm_up_rises_from_above_zero_to_one(schedule: str) -> None:
    factors = [learning_rate_factor(step, 10, 3, schedule) for step in range(4)]
    assert factors == [0.25, 0.5, 0.75, 1.0]


def test_a_run_that_is_all_warm_up_never_divides_by_zero() -> None:
    assert [learning_rate_factor(step, 2, 2, "linear") for step in range(3)] == [pytest.approx(1 / 3), 2 / 3, 0.0]
