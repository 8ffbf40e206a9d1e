"""Learning-rate factors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.config.schema import PhaseConfig
from museg_ray.learner.schedule import learning_rate_factor, schedule_spans

STEPS = st.integers(0, 6)
PHASES = st.lists(st.builds(PhaseConfig, steps=STEPS, fresh_schedule=st.booleans()), max_size=6)


def factors_of(phases: list[PhaseConfig], warmup_steps: int = 0, schedule: str = "linear") -> list[float]:
    """The factor of every step, and of the one after the run, which the scheduler asks for too."""
    spans, total_steps = schedule_spans(phases), sum(phase.steps for phase in phases)
    return [learning_rate_factor(step, spans, warmup_steps, schedule) for step in range(total_steps + 1)]


def test_linear_falls_from_one_towards_zero_after_the_last_step() -> None:
    factors = [learning_rate_factor(step, [(0, 4)], 0, "linear") for step in range(5)]
    assert factors == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_constant_stays_at_one() -> None:
    assert [learning_rate_factor(step, [(0, 3)], 0, "constant") for step in range(5)] == [1.0] * 5


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_warm_up_rises_from_above_zero_to_one(schedule: str) -> None:
    factors = [learning_rate_factor(step, [(0, 10)], 3, schedule) for step in range(4)]
    assert factors == [0.25, 0.5, 0.75, 1.0]


def test_a_run_that_is_all_warm_up_never_divides_by_zero() -> None:
    factors = [learning_rate_factor(step, [(0, 2)], 2, "linear") for step in range(3)]
    assert factors == [pytest.approx(1 / 3), 2 / 3, 0.0]


def test_a_fresh_schedule_warms_up_and_falls_over_its_own_phase_and_those_that_go_on() -> None:
    phases = [PhaseConfig(steps=2), PhaseConfig(steps=3, fresh_schedule=True), PhaseConfig(steps=2)]
    assert schedule_spans(phases) == [(0, 2), (2, 5)]
    assert factors_of(phases, warmup_steps=1) == [0.5, 1.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_phase_shorter_than_the_warm_up_ends_within_it() -> None:
    phases = [
        PhaseConfig(steps=2),
        PhaseConfig(steps=1, fresh_schedule=True),
        PhaseConfig(steps=4, fresh_schedule=True),
    ]
    assert factors_of(phases, 3, "constant") == [0.25, 0.5, 0.25, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(("second_is_fresh", "spans"), [(False, [(0, 7)]), (True, [(0, 4), (4, 3)])])
def test_a_phase_without_steps_is_as_if_it_were_not_there(
    position: int, second_is_fresh: bool, spans: list[tuple[int, int]]
) -> None:
    phases = [PhaseConfig(steps=4), PhaseConfig(steps=3, fresh_schedule=second_is_fresh)]
    phases.insert(position, PhaseConfig(steps=0, fresh_schedule=True))
    assert schedule_spans(phases) == spans


@given(phases=PHASES, warmup_steps=STEPS, schedule=st.sampled_from(["linear", "constant"]))
def test_without_a_fresh_schedule_phases_make_no_difference(
    phases: list[PhaseConfig], warmup_steps: int, schedule: str
) -> None:
    for phase in phases[1:]:
        phase.fresh_schedule = False
    total_steps = sum(phase.steps for phase in phases)
    whole = [learning_rate_factor(step, [(0, total_steps)], warmup_steps, schedule) for step in range(total_steps + 1)]
    assert factors_of(phases, warmup_steps, schedule) == whole


@given(phases=PHASES, warmup_steps=STEPS)
def test_spans_cover_the_run_without_a_gap_and_no_step_has_rate_zero(
    phases: list[PhaseConfig], warmup_steps: int
) -> None:
    spans = schedule_spans(phases)
    starts, lengths = zip(*spans, strict=True)
    assert [*starts, sum(phase.steps for phase in phases)] == [sum(lengths[:i]) for i in range(len(spans) + 1)]
    assert all(0 < factor <= 1 for factor in factors_of(phases, warmup_steps)[:-1])
