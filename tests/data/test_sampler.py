import json
import math
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.data.sampler import QuerySampler
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery

SHARES = st.floats(0.0, 1.0)
PHASES = st.lists(st.tuples(SHARES, st.integers(0, 40)), min_size=1, max_size=5)
"""(multi_segment_share, number of queries drawn) of each phase."""


def make_queries(num_single: int, num_multi: int) -> list[GroundingQuery]:
    one, two = ((0.0, 1.0),), ((0.0, 1.0), (2.0, 3.0))
    kinds = [("single", one)] * num_single + [("multi", two)] * num_multi
    return [GroundingQuery(f"{kind}/{i}", "/v.mp4", "event", segments) for i, (kind, segments) in enumerate(kinds)]


def make_sampler(num_single: int, num_multi: int, share: float, seed: int = 0) -> QuerySampler:
    """In its first phase."""
    sampler = QuerySampler(make_queries(num_single, num_multi), seed)
    sampler.start_phase(share)
    return sampler


def draw_phases(sampler: QuerySampler, phases: list[tuple[float, int]]) -> list[list[GroundingQuery]]:
    """The queries of each phase."""
    drawn = []
    for share, num_queries in phases:
        sampler.start_phase(share)
        drawn.append(sampler.draw(num_queries))
    return drawn


def ids(queries: list[GroundingQuery]) -> list[str]:
    return [query.query_id for query in queries]


def num_multi(queries: list[GroundingQuery]) -> int:
    return sum(len(query.segments) > 1 for query in queries)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.75, 1.0])
def test_the_share_of_multi_segment_queries_is_exact_after_every_draw(share: float) -> None:
    drawn = make_sampler(5, 3, share).draw(200)
    for num_drawn in range(1, 201):
        assert num_multi(drawn[:num_drawn]) == math.ceil(num_drawn * share)


@given(phases=PHASES, seed=st.integers(0, 3))
def test_the_share_is_exact_after_every_draw_of_every_phase_whatever_came_before(
    phases: list[tuple[float, int]], seed: int
) -> None:
    drawn = draw_phases(QuerySampler(make_queries(5, 3), seed), phases)
    for queries, (share, num_queries) in zip(drawn, phases, strict=True):
        assert len(queries) == num_queries
        for num_drawn in range(num_queries + 1):
            assert num_multi(queries[:num_drawn]) == math.ceil(num_drawn * share)


@given(phases=PHASES, sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 3))
def test_no_query_repeats_before_all_of_its_kind_were_drawn_also_across_phases(
    phases: list[tuple[float, int]], sizes: tuple[int, int], seed: int
) -> None:
    drawn = ids(list(chain.from_iterable(draw_phases(QuerySampler(make_queries(*sizes), seed), phases))))
    for kind, size in zip(("single", "multi"), sizes, strict=True):
        of_kind = [name for name in drawn if name.startswith(kind)]
        passes = [of_kind[start : start + size] for start in range(0, len(of_kind), size)]
        assert all(len(set(names)) == len(names) for names in passes)


def test_passes_differ_in_their_order() -> None:
    drawn = ids(make_sampler(10, 0, share=0.0).draw(30))
    assert len({tuple(drawn[start : start + 10]) for start in (0, 10, 20)}) == 3


def test_the_seed_alone_decides_the_order() -> None:
    first, again, other = (make_sampler(20, 20, 0.5, seed).draw(40) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_the_size_of_draws_does_not_matter() -> None:
    whole, parts = make_sampler(5, 7, 0.4), make_sampler(5, 7, 0.4)
    assert whole.draw(30) == parts.draw(1) + parts.draw(20) + parts.draw(0) + parts.draw(9)


@given(before=PHASES, num_left=st.integers(0, 30), after=PHASES, seed=st.integers(0, 3))
def test_a_restored_sampler_continues_exactly_from_any_query_of_any_phase(
    before: list[tuple[float, int]], num_left: int, after: list[tuple[float, int]], seed: int
) -> None:
    sampler, resumed = (QuerySampler(make_queries(5, 7), seed) for _ in range(2))
    draw_phases(sampler, before)
    resumed.restore(json.loads(json.dumps(sampler.state())))
    assert resumed.draw(num_left) == sampler.draw(num_left)
    assert draw_phases(resumed, after) == draw_phases(sampler, after)
    assert resumed.state() == sampler.state()


def test_a_sampler_whose_first_phase_is_still_to_come_can_be_restored() -> None:
    sampler, resumed = (QuerySampler(make_queries(5, 7), seed=0) for _ in range(2))
    resumed.restore(json.loads(json.dumps(sampler.state())))
    assert draw_phases(resumed, [(0.5, 20)]) == draw_phases(sampler, [(0.5, 20)])


@pytest.mark.parametrize(
    ("num_single", "num_multi", "share", "remedy"),
    [(3, 0, 0.5, "multi_segment_share=0"), (0, 3, 0.5, "multi_segment_share=1"), (0, 0, 0.0, "one segment")],
)
def test_a_share_of_queries_that_do_not_exist_is_refused_at_the_start_of_the_phase(
    num_single: int, num_multi: int, share: float, remedy: str
) -> None:
    sampler = QuerySampler(make_queries(num_single, num_multi), seed=0)
    before = sampler.state()
    with pytest.raises(DataError, match=remedy):
        sampler.start_phase(share)
    assert sampler.state() == before


def test_a_refused_share_is_explained_by_both_keys_that_can_set_it() -> None:
    with pytest.raises(DataError, match=r"data\.multi_segment_share=0, or train\.phases\[\]\.multi_segment_share=0"):
        make_sampler(3, 0, share=0.5)


def test_a_kind_that_is_not_asked_for_may_be_absent() -> None:
    assert num_multi(make_sampler(3, 0, 0.0).draw(5)) == 0
    assert num_multi(make_sampler(0, 3, 1.0).draw(5)) == 5
