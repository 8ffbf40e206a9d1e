import json
import math

import pytest

from museg_ray.data.sampler import QuerySampler
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery


def make_queries(num_single: int, num_multi: int) -> list[GroundingQuery]:
    one, two = ((0.0, 1.0),), ((0.0, 1.0), (2.0, 3.0))
    kinds = [("single", one)] * num_single + [("multi", two)] * num_multi
    return [GroundingQuery(f"{kind}/{i}", "/v.mp4", "event", segments) for i, (kind, segments) in enumerate(kinds)]


def ids(queries: list[GroundingQuery]) -> list[str]:
    return [query.query_id for query in queries]


def num_multi(queries: list[GroundingQuery]) -> int:
    return sum(len(query.segments) > 1 for query in queries)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.75, 1.0])
def test_the_share_of_multi_segment_queries_is_exact_after_every_draw(share: float) -> None:
    drawn = QuerySampler(make_queries(5, 3), seed=0, multi_segment_share=share).draw(200)
    for num_drawn in range(1, 201):
        assert num_multi(drawn[:num_drawn]) == math.ceil(num_drawn * share)


def test_no_query_repeats_before_all_of_its_kind_were_drawn() -> None:
    drawn = ids(QuerySampler(make_queries(6, 4), seed=3, multi_segment_share=0.5).draw(48))
    singles, multis = ([name for name in drawn if name.startswith(kind)] for kind in ("single", "multi"))
    assert all(len(set(singles[start : start + 6])) == 6 for start in range(0, 24, 6))
    assert all(len(set(multis[start : start + 4])) == 4 for start in range(0, 24, 4))


def test_passes_differ_in_their_order() -> None:
    drawn = ids(QuerySampler(make_queries(10, 0), seed=0, multi_segment_share=0.0).draw(30))
    assert len({tuple(drawn[start : start + 10]) for start in (0, 10, 20)}) == 3


def test_the_seed_alone_decides_the_order() -> None:
    queries = make_queries(20, 20)
    first, again, other = (QuerySampler(queries, seed, 0.5).draw(40) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_the_size_of_draws_does_not_matter() -> None:
    queries = make_queries(5, 7)
    whole, parts = QuerySampler(queries, 0, 0.4), QuerySampler(queries, 0, 0.4)
    assert whole.draw(30) == parts.draw(1) + parts.draw(20) + parts.draw(0) + parts.draw(9)


def test_a_restored_sampler_continues_exactly() -> None:
    queries = make_queries(5, 7)
    sampler, resumed = QuerySampler(queries, 0, 0.3), QuerySampler(queries, 0, 0.3)
    sampler.draw(23)
    resumed.restore(json.loads(json.dumps(sampler.state())))
    assert resumed.draw(50) == sampler.draw(50)


@pytest.mark.parametrize(
    ("num_single", "num_multi", "share", "remedy"),
    [(3, 0, 0.5, "multi_segment_share=0"), (0, 3, 0.5, "multi_segment_share=1"), (0, 0, 0.0, "one segment")],
)
def test_a_share_of_queries_that_do_not_exist_is_refused(
    num_single: int, num_multi: int, share: float, remedy: str
) -> None:
    with pytest.raises(DataError, match=remedy):
        QuerySampler(make_queries(num_single, num_multi), 0, share)


def test_a_kind_that_is_not_asked_for_may_be_absent() -> None:
    assert num_multi(QuerySampler(make_queries(3, 0), 0, 0.0).draw(5)) == 0
    assert num_multi(QuerySampler(make_queries(0, 3), 0, 1.0).draw(5)) == 5
