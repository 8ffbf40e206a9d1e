"""In which order training sees its queries: balanced, without repeats, the same at every run and resume."""

from collections.abc import Sequence

import numpy as np

from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery

State = dict[str, int]


class QuerySampler:
    """Draws single- and multi-segment queries at a fixed ratio; each kind passes through all its queries in random
    order before it repeats one.

    After d draws exactly ceil(d * multi_segment_share) were multi-segment queries. What comes next is a function of the
    seed and of how many of each kind were drawn, so these two numbers are the whole state.

    Raises:
        DataError: a kind that the share asks for has no queries.
    """

    def __init__(self, queries: Sequence[GroundingQuery], seed: int, multi_segment_share: float) -> None:
        self._single = _Stratum([query for query in queries if len(query.segments) == 1], seed, stream=0)
        self._multi = _Stratum([query for query in queries if len(query.segments) > 1], seed, stream=1)
        self._share = multi_segment_share
        if multi_segment_share < 1 and not self._single.queries:
            raise _empty("one segment", "1", multi_segment_share, len(queries))
        if multi_segment_share > 0 and not self._multi.queries:
            raise _empty("several segments", "0", multi_segment_share, len(queries))

    def draw(self, n: int) -> list[GroundingQuery]:
        """The next n queries."""
        return [self._draw_one() for _ in range(n)]

    def state(self) -> State:
        """What `restore` needs to continue after the last query drawn."""
        return {"num_single": self._single.num_drawn, "num_multi": self._multi.num_drawn}

    def restore(self, state: State) -> None:
        """Continue where the sampler that gave `state` stood; queries, seed and share must be the same."""
        self._single.num_drawn = state["num_single"]
        self._multi.num_drawn = state["num_multi"]

    def _draw_one(self) -> GroundingQuery:
        num_drawn = self._single.num_drawn + self._multi.num_drawn
        multi_is_due = self._multi.num_drawn < self._share * (num_drawn + 1)
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
        f"data.multi_segment_share is {share}, but none of the {num_queries} queries has {kind}. "
        f"Set data.multi_segment_share={remedy} or add such queries to data.train."
    )
