"""The phase schedule: which phase a step belongs to."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from museg_ray.config.schema import PhaseConfig


class PhaseStep(NamedTuple):
    """One optimiser step and the phase it belongs to."""

    step: int
    """From 1."""
    phase: PhaseConfig
    is_first: bool
    """The first of its phase: where a phase's fresh optimiser, schedule and reference start."""


def phase_steps(phases: Sequence[PhaseConfig], first_step: int = 1) -> Iterator[PhaseStep]:
    """Every step of a run from `first_step` on.

    Invariant: what a step is depends on its number alone, never on where the run was started or resumed; else a
    resumed run would switch rewards at another step than an uninterrupted one.
    """
    last_of_before = 0
    for phase in phases:
        for step in range(max(first_step, last_of_before + 1), last_of_before + phase.steps + 1):
            yield PhaseStep(step, phase, is_first=step == last_of_before + 1)
        last_of_before += phase.steps
