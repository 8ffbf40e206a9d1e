import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from museg_ray.metrics import names
from museg_ray.metrics.groups import group_metrics
from museg_ray.types import GroundingQuery, Group, Issue, Response, RewardParts, Segment, Unscored

DURATION_S = 10.0
ONE = ((1.0, 3.0),)
TWO = ((1.0, 3.0), (6.0, 8.0))
INVALID: tuple[Segment, ...] = ()


def reward(total: float = 1.0, predicted: tuple[Segment, ...] = ONE, **parts: float) -> RewardParts:
    values = {"global_match": 0.0, "local_match": 0.0, "matching": 0.0, "timestamp": 0.0, "format": 0.0} | parts
    return RewardParts(total, predicted=predicted, **values)


def scored(
    rewards: Sequence[RewardParts], truth: tuple[Segment, ...] = ONE, video: str = "a.mp4", finished: bool = True
) -> Group:
    responses = tuple(Response((1, 2, 3), np.zeros(3, np.float32), "text", finished) for _ in rewards)
    issue = Issue(0, GroundingQuery("q/0", video, "question", truth), "only", 0)
    advantages = np.zeros(len(rewards), np.float32)
    return Group(issue, "clip", DURATION_S, (1,), responses, 0, tuple(rewards), advantages)


def answered(*answers: tuple[Segment, ...], truth: tuple[Segment, ...] = ONE, video: str = "a.mp4") -> Group:
    return scored([reward(predicted=answer) for answer in answers], truth, video)


def metrics_of(*groups: Group) -> dict[str, float]:
    return group_metrics(groups, rollout_s=2.0)


def test_rewards_are_means_over_the_responses_of_all_groups():
    first = scored([reward(2.0, matching=0.4, global_match=0.3, local_match=0.5, timestamp=1.0, format=1.0)] * 2)
    metrics = metrics_of(first, scored([reward(0.0)] * 2))
    parts = ("TOTAL", "MATCHING", "GLOBAL", "LOCAL", "TIMESTAMP", "FORMAT")
    values = [metrics[getattr(names, f"REWARD_{part}")] for part in parts]
    assert values == pytest.approx([1.0, 0.2, 0.15, 0.25, 0.5, 0.5])


def test_the_spread_is_within_groups_and_groups_of_equal_rewards_are_counted():
    metrics = metrics_of(scored([reward(0.0), reward(2.0)]), scored([reward(5.0), reward(5.0)]))
    assert metrics[names.REWARD_STD] == pytest.approx(math.sqrt(2.0) / 2)
    assert metrics[names.REWARD_EQUAL_GROUPS_SHARE] == 0.5


def test_further_rewards_appear_under_their_names_only_where_there_are_some():
    extra = [reward()._replace(extras=(("tiou", value), ("custom", 1.0))) for value in (0.2, 0.4)]
    metrics = metrics_of(scored(extra))
    assert metrics[names.REWARD_TIOU] == pytest.approx(0.3)
    assert metrics[names.REWARD_CUSTOM] == 1.0
    assert names.REWARD_BREVITY not in metrics
    assert names.REWARD_TIOU not in metrics_of(scored([reward()] * 2))


def test_speed_length_and_truncation_are_those_of_the_responses():
    metrics = metrics_of(scored([reward()] * 3, finished=False), scored([reward()] * 3))
    assert metrics[names.ROLLOUT_RESPONSES_PER_S] == 3.0
    assert metrics[names.ROLLOUT_COMPLETION_TOKENS] == 3.0
    assert metrics[names.ROLLOUT_TRUNCATED_SHARE] == 0.5


def test_every_metric_has_a_name_of_the_table_and_is_finite():
    extras = tuple((name, 0.5) for name in ("tiou", "recall", "wasserstein", "brevity", "custom"))
    groups = [scored([reward()._replace(extras=extras)] * 2, truth=TWO, video=video) for video in ("a.mp4", "b.mp4")]
    metrics = metrics_of(*groups)
    assert set(metrics) <= set(names.METRICS)
    assert all(math.isfinite(value) for value in metrics.values())


def test_an_answer_is_invalid_when_it_names_no_segment():
    assert metrics_of(answered(ONE, INVALID, INVALID, TWO))[names.ANSWER_INVALID_SHARE] == 0.5


def test_one_segment_counts_against_valid_answers_to_multi_segment_queries_only():
    metrics = metrics_of(answered(ONE, TWO, ONE, INVALID, truth=TWO), answered(ONE, ONE, truth=ONE))
    assert metrics[names.ANSWER_SINGLE_SEGMENT_SHARE] == pytest.approx(2 / 3)


def test_a_step_without_multi_segment_queries_has_no_share_of_single_segments():
    assert names.ANSWER_SINGLE_SEGMENT_SHARE not in metrics_of(answered(ONE, ONE, truth=ONE))
    assert names.ANSWER_SINGLE_SEGMENT_SHARE not in metrics_of(answered(INVALID, INVALID, truth=TWO))


def test_the_same_answer_for_two_videos_is_found_after_rounding_to_a_tenth_of_a_second():
    near = ((1.04, 2.96),)
    metrics = metrics_of(answered(ONE, TWO, video="a.mp4"), answered(near, INVALID, video="b.mp4"))
    assert metrics[names.ANSWER_SAME_SHARE] == pytest.approx(2 / 3)


def test_an_answer_that_only_one_video_got_is_not_the_same_for_different_ones():
    metrics = metrics_of(answered(ONE, ONE, ONE, video="a.mp4"), answered(TWO, TWO, video="b.mp4"))
    assert metrics[names.ANSWER_SAME_SHARE] == 0.0


@pytest.mark.parametrize("other", [answered(ONE, ONE, video="a.mp4"), answered(INVALID, INVALID, video="b.mp4")])
def test_with_answers_for_one_video_alone_nothing_is_said_about_same_answers(other: Group):
    assert names.ANSWER_SAME_SHARE not in metrics_of(answered(ONE, ONE, video="a.mp4"), other)


@pytest.mark.parametrize(
    ("answer", "is_full"),
    [
        (((0.0, 9.0),), 1.0),
        (((0.0, 8.9),), 0.0),
        (((0.0, 5.0), (4.0, 6.0), (6.0, 9.5)), 1.0),
        (((0.0, 5.0), (0.0, 5.0)), 0.0),
        (((0.5, 1e308),), 1.0),  # what lies after the end covers nothing and does no harm
        (((20.0, 40.0),), 0.0),
    ],
)
def test_a_full_length_answer_covers_at_least_nine_tenths_of_the_video(answer: tuple[Segment, ...], is_full: float):
    assert metrics_of(answered(answer, INVALID))[names.ANSWER_FULL_LENGTH_SHARE] == is_full


def test_where_the_truth_is_the_whole_video_a_full_length_answer_is_no_sign():
    full = ((0.0, 10.0),)
    assert names.ANSWER_FULL_LENGTH_SHARE not in metrics_of(answered(full, full, truth=full))
    assert metrics_of(answered(full, full, truth=full), answered(full, ONE))[names.ANSWER_FULL_LENGTH_SHARE] == 0.5


def test_unscored_responses_count_as_rolled_out_and_in_no_reward():
    whole = scored([reward(1.0), reward(3.0), reward(5.0)], finished=False)
    filtered = scored([reward(9.0)] * 3)
    died = Unscored("text", ("died", "died"))
    partly = replace(whole, outcomes=(*whole.rewards[:2], died))
    metrics = group_metrics([partly, replace(filtered, outcomes=(died,) * 3)], rollout_s=2.0)
    assert metrics[names.ROLLOUT_RESPONSES_PER_S] == 3.0
    assert metrics[names.ROLLOUT_TRUNCATED_SHARE] == 0.5
    assert metrics[names.REWARD_TOTAL] == 2.0
