"""In which order training sees its queries: balanced, without repeats, the same at every run and resume."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery


class SamplerState(TypedDict):
    """Where a sampler stands; JSON keeps it exactly."""

    num_single: int
    """Single-segment queries drawn so far, in all phases."""
    num_multi: int
    phase_drawn: int
    """Queries drawn in the present phase."""
    phase_multi: int
    """The multi-segment ones among them."""
    multi_segment_share: float | None
    """The present phase's; None before the first one."""


class QuerySampler:
    """Draws single- and multi-segment queries at the phase's ratio; each kind passes through all its queries in random
    order before it repeats one, also across phases.

    After d draws of a phase exactly ceil(d * multi_segment_share) were multi-segment queries; what earlier phases drew
    is not made up for. What comes next is a function of the seed and of the counts in the state.
    """

    def __init__(self, queries: Sequence[GroundingQuery], seed: int) -> None:
        """The first `start_phase` or `restore` comes before the first draw."""
        self._single = _Stratum([query for query in queries if len(query.segments) == 1], seed, stream=0)
        self._multi = _Stratum([query for query in queries if len(query.segments) > 1], seed, stream=1)
        self._share: float | None = None
        self._phase_drawn = 0
        self._phase_multi = 0

    def start_phase(self, multi_segment_share: float) -> None:
        """Draw at this share (0 to 1) from now on, counted from here.

        Raises:
            DataError: a kind that the share asks for has no queries; the sampler stays as it was.
        """
        num_queries = len(self._single.queries) + len(self._multi.queries)
        if multi_segment_share < 1 and not self._single.queries:
            raise _empty("one segment", "1", multi_segment_share, num_queries)
        if multi_segment_share > 0 and not self._multi.queries:
            raise _empty("several segments", "0", multi_segment_share, num_queries)
        self._share = multi_segment_share
        self._phase_drawn = self._phase_multi = 0

    def draw(self, n: int) -> list[GroundingQuery]:
        """The next n queries."""
        return [self._draw_one() for _ in range(n)]

    def state(self) -> SamplerState:
        """What `restore` needs to continue after the last query drawn."""
        return {
            "num_single": self._single.num_drawn,
            "num_multi": self._multi.num_drawn,
            "phase_drawn": self._phase_drawn,
            "phase_multi": self._phase_multi,
            "multi_segment_share": self._share,
        }

    def restore(self, state: SamplerState) -> None:
        """Continue where the sampler that gave `state` stood, in the same phase; queries and seed must be the same."""
        self._single.num_drawn = state["num_single"]
        self._multi.num_drawn = state["num_multi"]
        self._phase_drawn = state["phase_drawn"]
        self._phase_multi = state["phase_multi"]
        self._share = state["multi_segment_share"]

    def _draw_one(self) -> GroundingQuery:
        assert self._share is not None, "start_phase comes before draw"
        multi_is_due = self._phase_multi < self._share * (self._phase_drawn + 1)
        self._phase_drawn += 1
        self._phase_multi += multi_is_due
        return (self._multi if multi_is_due else self._single).draw()


class _Stratum:
    """Endless shuffled passes over its queries; pass and place follow from the number drawn."""

    def __init__(self, queries: list[GroundingQuery], seed: int, stream: int) -> None:
        self.queries = queries
        self.num_drawn = 0
        self._seed = (seed, stream)

    def draw(self) -> GroundingQuery:
        epoch, place = divmod(self.num_drawn, len(self.queries))
        order = np.random.default_rng((*self._seed, epoch)).permutation(len(self.queries))
        self.num_drawn += 1
        return self.queries[order[place]]


def _empty(kind: str, remedy: str, share: float, num_queries: int) -> DataError:
    return DataError(
        f"The multi-segment share is {share}, but none of the {num_queries} queries has {kind}. Set "
        f"data.multi_segment_share={remedy}, or train.phases[].multi_segment_share={remedy} where the phase has its "
        "own, or add such queries to the annotation file."
    )
