import json
import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.data.curriculum import Curriculum
from museg_ray.data.sampler import QuerySampler, build_samplers
from museg_ray.errors import ConfigError, DataError
from museg_ray.types import GroundingQuery

SHARES = st.floats(0.0, 1.0)
PHASES = st.lists(st.tuples(SHARES, st.integers(0, 40)), min_size=1, max_size=5)
"""(multi_segment_share, number of queries drawn) of each phase."""
WEIGHTS = st.lists(st.one_of(st.integers(1, 100), st.floats(0.001, 1000.0)), min_size=1, max_size=8).map(
    lambda weights: {f"s{number}": float(weight) for number, weight in enumerate(weights)}
)
CURRICULA = st.sampled_from([None, Curriculum("by.number", lambda query, epoch: int(query.query_id[-1]) + epoch)])


def make_queries(num_single: int, num_multi: int) -> list[GroundingQuery]:
    one, two = ((0.0, 1.0),), ((0.0, 1.0), (2.0, 3.0))
    kinds = [("single", one)] * num_single + [("multi", two)] * num_multi
    return [GroundingQuery(f"{kind}/{i}", "/v.mp4", "event", segments) for i, (kind, segments) in enumerate(kinds)]


def of_sources(sizes: dict[str, int]) -> list[GroundingQuery]:
    """So many queries of each kind from each source."""
    one, two = ((0.0, 1.0),), ((0.0, 1.0), (2.0, 3.0))
    return [
        GroundingQuery(f"{source}/{kind}/{i}", "/v.mp4", "event", segments, source=source)
        for source, size in sizes.items()
        for kind, segments in (("single", one), ("multi", two))
        for i in range(size)
    ]


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


@given(phases=PHASES, sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 2**40))
def test_without_weights_and_curriculum_the_sequence_of_a_seed_stays_what_it_always_was(
    phases: list[tuple[float, int]], sizes: tuple[int, int], seed: int
) -> None:
    queries, counts, expected = make_queries(*sizes), [0, 0], list[GroundingQuery]()
    of_kind = queries[: sizes[0]], queries[sizes[0] :]
    for share, num_queries in phases:
        for position in range(num_queries):
            kind = int(math.ceil(position * share) < share * (position + 1))
            epoch, place = divmod(counts[kind], sizes[kind])
            order = np.random.default_rng((seed, kind, epoch)).permutation(sizes[kind])
            expected.append(of_kind[kind][order[place]])
            counts[kind] += 1
    assert list(chain.from_iterable(draw_phases(QuerySampler(queries, seed), phases))) == expected


@given(weights=WEIGHTS, phases=PHASES, seed=st.integers(0, 3))
@example(weights=dict(zip("abcdefg", (1, 30, 7, 30, 1, 30, 1), strict=True)), phases=[(0.0, 100)], seed=0)
def test_each_source_of_a_kind_has_its_share_of_the_draws_rounded_up_or_down(
    weights: dict[str, float], phases: list[tuple[float, int]], seed: int
) -> None:
    sampler = QuerySampler(of_sources(dict.fromkeys(weights, 2)), seed, weights)
    drawn = list(chain.from_iterable(draw_phases(sampler, phases)))
    total = sum(map(Fraction, weights.values()))
    for kind in (1, 2):
        sources = [query.source for query in drawn if len(query.segments) == kind]
        for num_drawn in range(1, len(sources) + 1):
            counts = Counter(sources[:num_drawn])
            assert all(abs(counts[s] - Fraction(w) / total * num_drawn) < 1 for s, w in weights.items())


def test_equal_weights_draw_sources_of_any_size_equally_often() -> None:
    sampler = QuerySampler(of_sources({"small": 1, "large": 9}), 0, {"small": 1.0, "large": 1.0})
    sampler.start_phase(0.0)
    assert Counter(query.source for query in sampler.draw(20)) == {"small": 10, "large": 10}


def test_a_source_of_weight_0_is_left_out_and_the_share_of_kinds_stays() -> None:
    sampler = QuerySampler(of_sources({"a": 3, "b": 3, "c": 3}), 0, {"a": 1, "b": 0, "c": 2})
    sampler.start_phase(0.5)
    drawn = sampler.draw(12)
    assert Counter(query.source for query in drawn) == {"a": 4, "c": 8}
    assert num_multi(drawn) == 6


def test_a_kind_is_shared_among_the_sources_that_have_it() -> None:
    queries = [query for query in of_sources({"a": 3, "b": 3}) if not query.query_id.startswith("b/multi")]
    sampler = QuerySampler(queries, 0, {"a": 1, "b": 3})
    sampler.start_phase(0.5)
    drawn = sampler.draw(16)
    assert {query.source for query in drawn if len(query.segments) > 1} == {"a"}
    assert Counter(query.source for query in drawn if len(query.segments) == 1) == {"a": 2, "b": 6}


@given(
    sizes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), min_size=1),
    phases=PHASES,
    curriculum=CURRICULA,
    seed=st.integers(0, 3),
)
def test_no_query_repeats_before_all_of_its_kind_and_source_were_drawn(
    sizes: dict[str, int], phases: list[tuple[float, int]], curriculum: Curriculum | None, seed: int
) -> None:
    sampler = QuerySampler(of_sources(sizes), seed, dict(zip("abc", (1, 2, 5), strict=True)), curriculum)
    drawn = ids(list(chain.from_iterable(draw_phases(sampler, phases))))
    for source, size in sizes.items():
        for kind in ("single", "multi"):
            of_kind = [name for name in drawn if name.startswith(f"{source}/{kind}")]
            passes = [of_kind[start : start + size] for start in range(0, len(of_kind), size)]
            assert all(len(set(names)) == len(names) for names in passes)


def test_the_order_of_a_source_does_not_depend_on_the_others() -> None:
    alone, beside = ({"a": 9}, {"a": 1.0}), ({"a": 9, "b": 9}, {"a": 1.0, "b": 4.0})
    samplers = [QuerySampler(of_sources(sizes), 0, weights) for sizes, weights in (alone, beside)]
    for sampler in samplers:
        sampler.start_phase(0.0)
    of_a = [query for query in samplers[1].draw(90) if query.source == "a"]
    assert samplers[0].draw(18) == of_a


def test_each_source_has_a_random_order_of_its_own() -> None:
    sampler = QuerySampler(of_sources({"a": 9, "b": 9}), 0, {"a": 1.0, "b": 1.0})
    sampler.start_phase(0.0)
    drawn = sampler.draw(18)
    of_a, of_b = ([query.query_id[1:] for query in drawn if query.source == source] for source in "ab")
    assert sorted(of_a) == sorted(of_b)
    assert of_a != of_b


@given(weights=WEIGHTS, before=PHASES, after=PHASES, num_left=st.integers(0, 30), curriculum=CURRICULA)
def test_weights_and_curriculum_resume_exactly_at_any_query(
    weights: dict[str, float],
    before: list[tuple[float, int]],
    after: list[tuple[float, int]],
    num_left: int,
    curriculum: Curriculum | None,
) -> None:
    queries = of_sources(dict.fromkeys(weights, 2))
    sampler, resumed = (QuerySampler(queries, 1, weights, curriculum) for _ in range(2))
    draw_phases(sampler, before)
    resumed.restore(json.loads(json.dumps(sampler.state())))
    assert resumed.draw(num_left) == sampler.draw(num_left)
    assert draw_phases(resumed, after) == draw_phases(sampler, after)
    assert resumed.state() == sampler.state()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"queries": of_sources({"a": 3, "b": 2})}, "num_queries was 8 and is 10"),
        ({"queries": of_sources({"a": 2, "b": 2})[::-1]}, "queries_hash was"),
        ({"queries": [replace(q, segments=((0.0, 1.0),)) for q in of_sources({"a": 2, "b": 2})]}, "queries_hash was"),
        ({"queries": [replace(q, source="a") for q in of_sources({"a": 2, "b": 2})]}, "queries_hash was"),
        ({"source_weights": {"a": 1, "b": 3}}, r"source_weights was \{'a': 1.0, 'b': 2.0\} and is"),
        ({"source_weights": {}}, "source_weights was"),
        ({"curriculum": Curriculum("my.own", lambda query, epoch: 0.0)}, "curriculum was '' and is 'my.own'"),
        ({"seed": 1}, "seed was 0 and is 1"),
    ],
)
def test_the_state_of_another_sequence_is_refused(other: dict[str, Any], says: str) -> None:
    same = {"queries": of_sources({"a": 2, "b": 2}), "seed": 0, "source_weights": {"a": 1, "b": 2}}
    sampler, different = QuerySampler(**same), QuerySampler(**(same | other))
    sampler.start_phase(0.5)
    sampler.draw(3)
    before = different.state()
    with pytest.raises(DataError, match=says):
        different.restore(json.loads(json.dumps(sampler.state())))
    assert different.state() == before


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.source_weights\['a'\]"):
        QuerySampler(of_sources({"a": 1}), 0, {"a": weight})


def test_weights_of_0_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match="all 0"):
        QuerySampler(of_sources({"a": 1}), 0, {"a": 0.0})


def test_a_source_without_a_weight_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="no weight for 'b', the source of some queries; it has 'a'"):
        QuerySampler(of_sources({"a": 1, "b": 1}), 0, {"a": 1.0})


def test_a_kind_that_only_a_left_out_source_has_is_explained() -> None:
    queries = [query for query in of_sources({"a": 1, "b": 1}) if "a/multi" not in query.query_id]
    with pytest.raises(DataError, match=r"several segments \(data\.source_weights leaves out 'b'\)"):
        QuerySampler(queries, 0, {"a": 1.0, "b": 0.0}).start_phase(0.5)


def two_files(**data: Any) -> tuple[Config, dict[str, list[GroundingQuery]]]:
    config = Config()
    config.train.phases = [PhaseConfig("one", 3, train="a.jsonl"), PhaseConfig("two", 3, train="b.jsonl")]
    for key, value in data.items():
        setattr(config.data, key, value)
    return config, {"a.jsonl": of_sources({"a": 2}), "b.jsonl": of_sources({"b": 2})}


def test_each_file_has_a_sampler_and_needs_the_weights_of_its_own_sources_only() -> None:
    samplers = build_samplers(
        *two_files(source_weights={"a": 1.0, "b": 0.5}, curriculum="examples.curriculum.difficulty"), seed=0
    )
    assert list(samplers) == ["a.jsonl", "b.jsonl"]
    assert samplers["b.jsonl"].state()["inputs"]["source_weights"] == {"b": 0.5}
    assert samplers["b.jsonl"].state()["inputs"]["curriculum"] == "examples.curriculum.difficulty"


def test_a_weight_for_a_source_that_no_file_has_is_refused() -> None:
    with pytest.raises(DataError, match="names 'c', but no query comes from there; the sources are 'a', 'b'"):
        build_samplers(*two_files(source_weights={"a": 1.0, "b": 0.5, "c": 1.0}), seed=0)


def test_a_late_phase_without_the_queries_it_asks_for_is_refused_at_once() -> None:
    config, queries = two_files()
    queries["b.jsonl"] = queries["b.jsonl"][:2]
    with pytest.raises(DataError, match="several segments"):
        build_samplers(config, queries, seed=0)
