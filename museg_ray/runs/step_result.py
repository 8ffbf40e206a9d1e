"""A finished optimiser step, as the trainer tells of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from museg_ray.errors import QueryError
from museg_ray.types import Group


@dataclass(frozen=True, slots=True)
class StepResult:
    step: int
    """From 1."""
    phase: str
    groups: Sequence[Group]
    """All that were sampled for it."""
    failures: Sequence[QueryError]
    """Of the queries without a group, since the result before."""
    metrics: dict[str, float]
