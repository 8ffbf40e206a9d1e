"""The plan of packs: whole, within the budget, balanced, and the same on every rank."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from museg_ray.learner.packs import GroupLengths, PackPlan, Part, plan_packs

Case = tuple[list[GroupLengths], int, int]
"""Groups, budget, ranks."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Groups of like and unlike lengths, with a budget that leaves little room, some, or all of it."""
    lengths = st.one_of(st.integers(0, 30), st.sampled_from([0, 1, 7, 30]))
    group = st.builds(GroupLengths, st.integers(1, 60), st.lists(lengths, min_size=1, max_size=9))
    groups = draw(st.lists(group, min_size=1, max_size=12))
    least = max(each.prompt + max(each.completions) for each in groups)
    budget = least + draw(st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 1000)))
    return groups, budget, draw(st.integers(1, 5))


def parts_of(packs: Sequence[Sequence[PackPlan]]) -> list[Part]:
    return [part for rank in packs for pack in rank for part in pack]


def total(pack: PackPlan) -> int:
    return sum(part.num_tokens for part in pack)


def whole(group: GroupLengths) -> int:
    return group.prompt + sum(group.completions)


@settings(max_examples=100)
@given(cases())
def test_every_response_is_there_once_and_in_order(case: Case) -> None:
    groups, budget, ranks = case
    by_group: dict[int, list[tuple[int, ...]]] = {index: [] for index in range(len(groups))}
    for part in parts_of(plan_packs(groups, budget, ranks)):
        assert part.responses == tuple(sorted(part.responses)) and part.responses
        by_group[part.group].append(part.responses)
    for index, shares in by_group.items():
        in_order = [response for share in sorted(shares) for response in share]
        assert in_order == list(range(len(groups[index].completions)))


@settings(max_examples=100)
@given(cases())
def test_no_pack_is_over_the_budget_and_lengths_are_true(case: Case) -> None:
    groups, budget, ranks = case
    for rank in plan_packs(groups, budget, ranks):
        for pack in rank:
            assert total(pack) <= budget
            for part in pack:
                group = groups[part.group]
                assert part.num_tokens == group.prompt + sum(group.completions[i] for i in part.responses)


@settings(max_examples=100)
@given(cases())
def test_all_ranks_have_the_same_number_of_packs_and_never_only_empty_ones(case: Case) -> None:
    """A rank that makes one pass fewer leaves the others waiting; one that all fill up is time for nothing."""
    groups, budget, ranks = case
    plan = plan_packs(groups, budget, ranks)
    assert len(plan) == ranks and len({len(rank) for rank in plan}) == 1
    assert all(any(rank[index] for rank in plan) for index in range(len(plan[0])))
    for rank in plan:
        assert not any(after and not before for before, after in pairwise(rank))


@settings(max_examples=100)
@given(cases())
def test_the_plan_depends_on_the_lengths_alone(case: Case) -> None:
    groups, budget, ranks = case
    again = [GroupLengths(group.prompt, tuple(group.completions)) for group in groups]
    assert plan_packs(again, budget, ranks) == plan_packs(groups, budget, ranks)


@settings(max_examples=100)
@given(cases())
def test_the_most_loaded_rank_has_at_most_the_mean_and_one_longest_part(case: Case) -> None:
    groups, budget, ranks = case
    plan = plan_packs(groups, budget, ranks)
    loads = [sum(map(total, rank)) for rank in plan]
    longest = max(part.num_tokens for part in parts_of(plan))
    assert max(loads) <= sum(loads) / ranks + longest
    assert max(loads) - min(loads) <= longest


@settings(max_examples=100)
@given(cases())
def test_a_group_that_fits_is_never_split_and_another_into_as_few_parts_as_its_order_allows(case: Case) -> None:
    groups, budget, ranks = case
    parts = parts_of(plan_packs(groups, budget, ranks))
    for index, group in enumerate(groups):
        mine = sorted((part for part in parts if part.group == index), key=lambda part: part.responses)
        assert (len(mine) == 1) == (whole(group) <= budget)
        for part, following in pairwise(mine):
            assert part.num_tokens + group.completions[following.responses[0]] > budget


@settings(max_examples=100)
@given(cases())
def test_no_pack_is_opened_while_another_of_the_rank_has_room(case: Case) -> None:
    groups, budget, ranks = case
    for rank in plan_packs(groups, budget, ranks):
        filled = [pack for pack in rank if pack]
        for index, pack in enumerate(filled):
            assert all(total(earlier) + pack[0].num_tokens > budget for earlier in filled[:index])


def test_a_group_is_split_in_the_order_of_its_responses_each_part_with_its_prompt() -> None:
    plan = plan_packs([GroupLengths(10, [5, 5, 8, 0, 2, 1])], 20, 1)
    assert plan == [[(Part(0, (0, 1), 20),), (Part(0, (2, 3, 4), 20),), (Part(0, (5,), 11),)]]


def test_a_rank_without_a_part_has_an_empty_pack() -> None:
    plan = plan_packs([GroupLengths(4, [1, 1])], 10, 3)
    assert plan == [[(Part(0, (0, 1), 6),)], [()], [()]]


def test_a_group_of_empty_responses_is_one_part() -> None:
    assert plan_packs([GroupLengths(4, [0, 0])], 4, 1) == [[(Part(0, (0, 1), 4),)]]


def test_a_response_that_fits_into_no_pack_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="a response of 7 tokens, room for 6"):
        plan_packs([GroupLengths(4, [7])], 10, 1)
