"""In which order one pass goes through its queries: random, or by a difficulty of the user's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeAlias

import numpy as np

from museg_ray.config.user_function import load_function
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery

Difficulty: TypeAlias = Callable[[GroundingQuery, int], float]
"""`difficulty(query, epoch) -> float`, a finite number; `epoch` counts the passes, from 0. It must return the same for
the same arguments: a resumed run asks again. It is called once a query at the start of each pass."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """A difficulty of the user's, its results checked."""

    path: str
    """As `data.curriculum` names it."""
    difficulty: Difficulty

    def measure(self, query: GroundingQuery, epoch: int) -> float:
        """The query's difficulty in that pass.

        Raises:
            DataError: the function failed, or returned no finite number; names the query.
        """
        try:
            value: object = self.difficulty(query, epoch)
            if isinstance(value, Real) and math.isfinite(value):
                return float(value)
        except Exception as error:  # whatever the user's function does
            fault = f"raised {type(error).__name__}: {error}"
            raise DataError(self._complaint(fault, query, epoch)) from error
        raise DataError(self._complaint(f"returned {value!r}", query, epoch))

    def _complaint(self, fault: str, query: GroundingQuery, epoch: int) -> str:
        return (
            f"data.curriculum {self.path} {fault} for the query {query.query_id} ({query.video}) in pass {epoch}; "
            "expected a finite number. Correct the function, or leave data.curriculum empty."
        )


def load_curriculum(path: str) -> Curriculum | None:
    """The curriculum at the import path `data.curriculum`; None when it is empty.

    Raises:
        ConfigError: no such module or function.
    """
    return Curriculum(path, load_function("data.curriculum", path)) if path else None


def pass_order(
    queries: Sequence[GroundingQuery], seed: tuple[int, ...], epoch: int, curriculum: Curriculum | None
) -> list[int]:
    """The places of `queries` in the order in which the pass draws them, a function of the arguments alone.

    Raises:
        DataError: the curriculum failed for a query.
    """
    shuffled: list[int] = np.random.default_rng((*seed, epoch)).permutation(len(queries)).tolist()
    if curriculum is None:
        return shuffled
    # The sort is stable: what is equally difficult stays shuffled.
    return sorted(shuffled, key=lambda place: curriculum.measure(queries[place], epoch))
