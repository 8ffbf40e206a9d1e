import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.config.schema import PhaseConfig
from museg_ray.rewards.phases import phase_steps

phase_lists = st.lists(st.integers(0, 5), min_size=1, max_size=5).map(
    lambda lengths: [PhaseConfig(name=str(index), steps=steps) for index, steps in enumerate(lengths)]
)


def test_the_phase_switches_exactly_at_its_step() -> None:
    plan = phase_steps([PhaseConfig(name="timestamps", steps=2), PhaseConfig(name="free", steps=3)])
    assert [(step, phase.name, is_first) for step, phase, is_first in plan] == [
        (1, "timestamps", True),
        (2, "timestamps", False),
        (3, "free", True),
        (4, "free", False),
        (5, "free", False),
    ]


def test_a_phase_of_no_steps_is_left_out() -> None:
    plan = list(phase_steps([PhaseConfig(name="timestamps", steps=0), PhaseConfig(name="free", steps=1)]))
    assert [phase.name for _, phase, _ in plan] == ["free"]


@given(phase_lists, st.integers(1, 30))
def test_what_a_step_is_does_not_depend_on_where_the_run_was_resumed(phases: list[PhaseConfig], first: int) -> None:
    whole = list(phase_steps(phases))
    assert list(phase_steps(phases, first_step=first)) == whole[first - 1 :]


@given(phase_lists)
def test_every_phase_has_its_steps_and_one_first_step(phases: list[PhaseConfig]) -> None:
    plan = list(phase_steps(phases))
    assert [step for step, _, _ in plan] == list(range(1, sum(phase.steps for phase in phases) + 1))
    for phase in phases:
        own = [is_first for _, owner, is_first in plan if owner is phase]
        assert own == [True] * min(1, phase.steps) + [False] * (phase.steps - 1)


@pytest.mark.parametrize("first", [3, 4])
def test_a_run_resumed_at_a_switch_starts_the_phase_anew_and_one_resumed_after_it_does_not(first: int) -> None:
    phases = [PhaseConfig(name="a", steps=2), PhaseConfig(name="b", steps=2)]
    assert next(phase_steps(phases, first)) == (first, phases[1], first == 3)
