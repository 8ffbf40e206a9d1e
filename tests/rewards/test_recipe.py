import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields

import pytest
from hypothesis import example, find, given, settings
from hypothesis import strategies as st

from museg_ray.config.schema import FURTHER_REWARDS, BrevityConfig, RewardConfig, RewardWeights
from museg_ray.rewards.answer import MAX_CHARS, MAX_SEGMENTS
from museg_ray.rewards.golden import golden_cases
from museg_ray.rewards.recipe import Recipe, further_rewards
from museg_ray.types import GroundingQuery, RewardParts, Segment

ALL_PARTS = RewardWeights(matching=1.0, timestamp=1.0, format=1.0)
LOCAL_MATCHINGS = ["sequential", "maximum", "none"]
TRUTH = ((10.0, 20.0), (30.0, 40.0), (50.0, 60.0))

hundredths = st.integers(0, 30_000).map(lambda n: n / 100)
segments = st.tuples(hundredths, hundredths).filter(lambda pair: pair[0] < pair[1])
segment_lists = st.lists(segments, min_size=1, max_size=5)
local_matchings = st.sampled_from(LOCAL_MATCHINGS)
fragments = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        " ",
        "-",
        ".",
        "1",
        "12.30-15.00",
        "nan",
        "inf",
        "9" * 400,
        "\u0663",
    ]
)
items = st.one_of(
    segments.map(lambda segment: f"{segment[0]:.2f}-{segment[1]:.2f}"),
    segments.map(lambda segment: f"{segment[0]:.2f}-{segment[1]:.2f}"),
    st.sampled_from(
        [
            "5-1",
            "3-3",
            "1 - 2",
            "-1-2",
            "0.00-inf",
            "nan-nan",
            "1e1-2e1",
            "00:10-00:20",
            "1-2s",
            "1-2,",
            "\u0661-\u0662",
        ]
    ),
)
reasonings = st.one_of(st.just(""), st.lists(hundredths.map("{} to ".format)).map("".join), st.text(max_size=20))
ends = st.sampled_from(["", "", " ", "\n", "So: ", "<think>", "</answer>", "<|im_end|>"])
responses = st.builds(
    lambda before, reasoning, cites, answer, after: (
        f"{before}<think>{reasoning}{' '.join(answer).replace('-', ' ') if cites else ''}</think>"
        f"<answer>{' '.join(answer)}</answer>{after}"
    ),
    ends,
    reasonings,
    st.booleans(),
    st.lists(items, max_size=4),
    ends,
)
texts = st.one_of(st.text(), st.lists(st.one_of(fragments, st.text(max_size=3))).map("".join), responses, responses)


def score_text(
    text: str, truth: Sequence[Segment], local: str = "sequential", weights: RewardWeights = ALL_PARTS
) -> RewardParts:
    query = GroundingQuery("test/0", "video.mp4", "the red circle is visible", tuple(truth))
    return Recipe(RewardConfig(local_matching=local)).score(text, query, weights)


def respond(segments: list[Segment]) -> str:
    """A well-formed response that cites nothing."""
    return f"<think></think><answer>{' '.join(f'{start:.6f}-{end:.6f}' for start, end in segments)}</answer>"


def score(segments: list[Segment], truth: list[Segment], local: str) -> RewardParts:
    return score_text(respond(segments), truth, local)


def assert_in_range(rewards: RewardParts) -> None:
    parts = [rewards.global_match, rewards.local_match, rewards.matching, rewards.timestamp, rewards.format]
    assert all(math.isfinite(part) and 0.0 <= part <= 1.0 for part in parts), rewards
    assert 0.0 <= rewards.total <= 3.0


def test_a_perfect_response_earns_every_part() -> None:
    text = "<think>10 to 20, 30 to 40, 50 to 60</think><answer>10.00-20.00 30.00-40.00 50.00-60.00</answer>"
    assert score_text(text, TRUTH) == (3.0, 1.0, 1.0, 1.0, 1.0, 1.0, TRUTH, ())


def test_matching_is_the_mean_of_the_global_and_the_local_reward() -> None:
    rewards = score([(15.0, 25.0)], [(10.0, 20.0)], "sequential")
    assert rewards.global_match == pytest.approx(1 / 3)
    assert rewards.local_match == pytest.approx(2 / 3)
    assert rewards.matching == pytest.approx(1 / 2)


def test_matching_without_a_local_part_is_the_global_reward() -> None:
    rewards = score([(15.0, 25.0)], [(10.0, 20.0)], "none")
    assert rewards.matching == rewards.global_match == pytest.approx(1 / 3)
    assert rewards.local_match == 0.0


def test_total_is_the_weighted_sum_of_the_phase() -> None:
    text = "<think>10 and 30</think><answer>10-30</answer>"
    weights = RewardWeights(matching=2.0, timestamp=0.5, format=0.25)
    rewards = score_text(text, [(10.0, 20.0)], weights=weights)
    assert rewards.total == pytest.approx(2.0 * (0.5 + 0.75) / 2 + 0.5 + 0.25)


def test_the_same_time_cut_differently_loses_only_the_local_reward() -> None:
    rewards = score([(10.0, 15.0), (15.0, 20.0)], [(10.0, 20.0)], "sequential")
    assert rewards.global_match == 1.0
    assert rewards.local_match == pytest.approx(0.75 / 2)


def test_an_invalid_answer_earns_nothing_at_all() -> None:
    rewards = score_text("<think>10 20</think><answer></answer>", TRUTH)
    assert rewards == (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (), ())


def test_an_answer_that_cites_itself_earns_no_timestamp_reward() -> None:
    rewards = score_text("<think><answer>10-20</answer></think>", TRUTH)
    assert rewards.timestamp == rewards.format == 0.0
    assert rewards.matching > 0.0


def test_the_texts_that_stand_for_any_text_hold_valid_answers_with_and_without_citations() -> None:
    """Else the tests below would hold for a recipe that fails on every answer."""
    for timestamp in (0.0, 1.0):
        found = find(texts, lambda text, t=timestamp: _scores(text, t), settings=settings(max_examples=2000))
        assert found


def _scores(text: str, timestamp: float) -> bool:
    rewards = score_text(text, [(10.0, 20.0)])
    return bool(rewards.predicted) and rewards.format == 1.0 and rewards.timestamp == timestamp


@given(texts, segment_lists, local_matchings)
@example("<answer>0.00-inf</answer>", [(0.0, 1.0)], "sequential")
@example("<answer>nan-nan</answer>", [(0.0, 1.0)], "sequential")
@example(f"<answer>0-{'9' * 308}</answer>", [(0.0, 1.0)], "maximum")
@example("<answer>0-1 " * 200_000, [(0.0, 1.0)], "sequential")
@example("<answer>" + "0-1 " * 250_000 + "</answer>", [(0.0, 1.0)], "maximum")
@example("<think>" + "1.1" * 300_000 + "</think><answer>0-1</answer>", [(0.0, 1.0)], "sequential")
@example("\ud800<answer>0-1</answer>", [(0.0, 1.0)], "sequential")
def test_rewards_are_finite_and_in_range_for_any_text(text: str, truth: list[Segment], local: str) -> None:
    assert_in_range(score_text(text, truth, local))


@given(segment_lists, segment_lists, local_matchings)
def test_rewards_are_in_range_for_any_segments(predicted: list[Segment], truth: list[Segment], local: str) -> None:
    assert_in_range(score(predicted, truth, local))


@given(segment_lists, local_matchings)
def test_identical_segments_score_one(truth: list[Segment], local: str) -> None:
    assert score(truth, truth, local).matching == 1.0


@given(segment_lists.flatmap(lambda s: st.tuples(st.just(s), st.permutations(s))), segment_lists, local_matchings)
def test_the_order_of_the_answers_segments_does_not_matter(
    orders: tuple[list[Segment], list[Segment]], truth: list[Segment], local: str
) -> None:
    assert score(orders[0], truth, local) == score(orders[1], truth, local)
    assert score(truth, orders[0], local) == score(truth, orders[1], local)


@given(segment_lists, segments, local_matchings)
def test_matching_never_rises_when_a_segment_is_added_to_a_perfect_answer(
    truth: list[Segment], extra: Segment, local: str
) -> None:
    with_extra = score([*truth, extra], truth, local).matching
    assert with_extra <= score(truth, truth, local).matching == 1.0
    assert with_extra < 1.0 or local == "none"


@given(segment_lists, segments, local_matchings)
def test_a_wrong_segment_lowers_the_matching_of_a_perfect_answer(
    truth: list[Segment], length: Segment, local: str
) -> None:
    last_end_s = max(end_s for _, end_s in truth)
    wrong = (last_end_s + length[0], last_end_s + length[1])
    assert score([*truth, wrong], truth, local).matching < 1.0


@given(segment_lists, st.sampled_from(["sequential", "maximum"]))
def test_a_segment_too_many_or_too_few_lowers_matching(truth: list[Segment], local: str) -> None:
    assert score([*truth, truth[0]], truth, local).matching < 1.0
    assert score(truth, [*truth, truth[0]], local).matching < 1.0


@given(segment_lists, segment_lists, local_matchings, st.integers(1, 1000), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_shifting_and_scaling_time_changes_nothing(
    predicted: list[Segment], truth: list[Segment], local: str, shift_s: int, factor: float
) -> None:
    def moved(segments: list[Segment]) -> list[Segment]:
        return [((start_s + shift_s) * factor, (end_s + shift_s) * factor) for start_s, end_s in segments]

    before, after = score(predicted, truth, local), score(moved(predicted), moved(truth), local)
    assert after.matching == pytest.approx(before.matching, abs=1e-6)


def test_a_truth_with_a_reversed_segment_is_refused() -> None:
    with pytest.raises(AssertionError, match="ill-formed"):
        score_text("", [(38.0, 13.0)])


def test_rewards_of_the_golden_responses_are_in_range() -> None:
    for case in golden_cases():
        assert_in_range(score_text(case.response, case.truth))


WORST = {
    "a megabyte of answer": "<answer>" + "0-1 " * 250_000 + "</answer>",
    "a megabyte of opening tags": "<think>" * 150_000,
    "a megabyte of digits": "<think>" + "1" * 1_000_000 + "</think><answer>0-1</answer>",
    "a megabyte of dots": "<think>" + "1." * 500_000 + "</think><answer>0-1</answer>",
    "the most numbers that are read": ("<think>" + "1.1 " * MAX_CHARS)[: MAX_CHARS - 40]
    + "</think><answer>0-1</answer>",
    "the longest number that is read": ("<think>" + "1" * MAX_CHARS)[: MAX_CHARS - 40] + "</think><answer>0-1</answer>",
    "colons": ("<think>" + "1:" * MAX_CHARS)[: MAX_CHARS - 40] + "</think><answer>0-1</answer>",
    "the most segments that are read": respond([(float(start), start + 1.5) for start in range(MAX_SEGMENTS)]),
    "one bad item of thousands": "<answer>" + "0-1 " * 20_000 + "0-</answer>",
}


@pytest.mark.parametrize("local", LOCAL_MATCHINGS)
@pytest.mark.parametrize("text", WORST.values(), ids=WORST.keys())
def test_the_worst_texts_are_scored_in_bounded_time(text: str, local: str) -> None:
    """0.1 s of processor time, as the machine may be busy, for up to a megabyte."""
    truth = [(start, start + 2.0) for start in range(200)]
    score_text("", truth, local)
    assert _least_cpu_s(lambda: score_text(text, truth, local)) < 0.1


def _least_cpu_s(call: Callable[[], object], tries: int = 3) -> float:
    seconds = []
    for _ in range(tries):
        start_s = time.process_time()
        call()
        seconds.append(time.process_time() - start_s)
    return min(seconds)


def test_a_further_reward_counts_and_is_reported_where_it_has_a_weight() -> None:
    text = "<think>10 and 30</think><answer>10-30</answer>"
    rewards = score_text(text, [(10.0, 20.0)], weights=RewardWeights(matching=0.0, format=0.0, tiou=2.0, brevity=1.0))
    assert rewards.extras == (("tiou", 0.5), ("brevity", 1.0))
    assert rewards.total == pytest.approx(2.0 * 0.5 + 1.0)
    assert score_text(text, [(10.0, 20.0)]).extras == ()


def test_every_further_reward_has_a_weight_of_its_name() -> None:
    config = RewardConfig(custom="tests.rewards.hostile_reward.reward")
    named = {weight.name for weight in fields(RewardWeights)}
    assert tuple(further_rewards(config)) == FURTHER_REWARDS
    assert {*FURTHER_REWARDS, "matching", "timestamp", "format"} == named


def test_the_configuration_chooses_measure_and_citation_rule() -> None:
    query = GroundingQuery("test/0", "video.mp4", "", ((10.0, 20.0),))
    config = RewardConfig(global_matching="f1", timestamp="fraction", brevity=BrevityConfig(0, 100))
    rewards = Recipe(config).score("<think>15</think><answer>15-25</answer>", query, ALL_PARTS)
    assert (rewards.global_match, rewards.timestamp) == (pytest.approx(0.5), 0.5)


@given(texts, segment_lists)
def test_further_rewards_are_finite_and_in_range_for_any_text(text: str, truth: list[Segment]) -> None:
    weights = RewardWeights(0, 0, 0, tiou=1.0, recall=1.0, wasserstein=1.0, brevity=1.0)
    rewards = score_text(text, truth, weights=weights)
    assert [name for name, _ in rewards.extras] == ["tiou", "recall", "wasserstein", "brevity"]
    assert all(math.isfinite(value) and 0.0 <= value <= 1.0 for _, value in rewards.extras), rewards
    assert 0.0 <= rewards.total <= 4.0
