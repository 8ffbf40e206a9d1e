from museg_ray.config.schema import PhaseConfig
from museg_ray.train.trainer import phase_of_step


def test_the_phase_switches_exactly_at_its_step() -> None:
    plan = list(phase_of_step([PhaseConfig(name="timestamps", steps=2), PhaseConfig(name="free", steps=3)]))
    assert [(step, phase.name, is_first) for step, phase, is_first in plan] == [
        (1, "timestamps", True),
        (2, "timestamps", False),
        (3, "free", True),
        (4, "free", False),
        (5, "free", False),
    ]


def test_a_phase_of_no_steps_is_left_out() -> None:
    plan = list(phase_of_step([PhaseConfig(name="timestamps", steps=0), PhaseConfig(name="free", steps=1)]))
    assert [phase.name for _, phase, _ in plan] == ["free"]
