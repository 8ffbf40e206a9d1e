"""The rewards beyond the paper's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance as scipy_distance

from museg_ray.config.schema import BrevityConfig
from museg_ray.errors import ConfigError, RewardError
from museg_ray.rewards.answer import ParsedResponse, parse_response
from museg_ray.rewards.further import (
    brevity_reward,
    load_reward,
    recall_reward,
    tiou_reward,
    wasserstein_distance,
    wasserstein_reward,
)
from museg_ray.rewards.segments import union
from museg_ray.types import GroundingQuery, Segment

QUERY = GroundingQuery("test/0", "video.mp4", "the red circle is visible", ((10.0, 20.0),))
seconds = st.integers(0, 60)
segments = st.tuples(seconds, seconds).filter(lambda pair: pair[0] < pair[1]).map(lambda p: (float(p[0]), float(p[1])))
segment_lists = st.lists(segments, min_size=1, max_size=4)


def answer(*predicted: Segment) -> ParsedResponse:
    body = " ".join(f"{start_s}-{end_s}" for start_s, end_s in predicted)
    return parse_response(f"<think></think><answer>{body}</answer>")


def test_tiou_is_the_iou_of_covered_time() -> None:
    assert tiou_reward(answer((15.0, 25.0)), QUERY) == pytest.approx(1 / 3)
    assert tiou_reward(answer(), QUERY) == 0.0


@pytest.mark.parametrize(
    ("end_s", "expected"), [(12.9, 0.0), (13.0, 1 / 3), (14.9, 1 / 3), (15.0, 2 / 3), (17.0, 1.0), (20.0, 1.0)]
)
def test_recall_rises_by_a_third_at_each_threshold(end_s: float, expected: float) -> None:
    assert recall_reward(answer((10.0, end_s)), QUERY) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("predicted", "distance_s"),
    [
        ((10.0, 20.0), 0.0),
        ((13.0, 23.0), 3.0),
        ((110.0, 120.0), 100.0),
        ((10.0, 30.0), 5.0),  # the mean shift of 0 to 10 s
        ((15.0, 15.1), 2.5),  # nearly a point in the middle of 10 s
    ],
)
def test_wasserstein_distance_of_known_cases(predicted: Segment, distance_s: float) -> None:
    assert wasserstein_distance([predicted], [(10.0, 20.0)]) == pytest.approx(distance_s, abs=0.06)


@given(segment_lists, segment_lists)
def test_wasserstein_distance_agrees_with_sampling(a: list[Segment], b: list[Segment]) -> None:
    """Against scipy's distance between the middles of hundredths of a second."""

    def middles(covering: list[Segment]) -> np.ndarray:
        return np.concatenate([np.arange(start_s, end_s, 0.01) + 0.005 for start_s, end_s in union(covering)])

    expected = scipy_distance(middles(a), middles(b))
    assert wasserstein_distance(union(a), union(b)) == pytest.approx(expected, abs=0.02)


@given(segment_lists, segment_lists)
def test_wasserstein_is_in_range_and_symmetric_and_one_for_the_same_time(a: list[Segment], b: list[Segment]) -> None:
    query_a, query_b = (GroundingQuery("test/0", "", "", tuple(sorted(truth))) for truth in (a, b))
    reward = wasserstein_reward(answer(*a), query_b, beta=3.0)
    assert 0.0 <= reward <= 1.0
    assert reward == pytest.approx(wasserstein_reward(answer(*b), query_a, beta=3.0))
    assert wasserstein_reward(answer(*union(a)), query_a, beta=3.0) == pytest.approx(1.0)


def test_wasserstein_tells_near_from_far_where_iou_is_zero() -> None:
    near, far = (wasserstein_reward(answer(segment), QUERY, 1.0) for segment in ((20.0, 30.0), (40.0, 50.0)))
    assert near == pytest.approx(math.exp(-10 / 20))
    assert far == pytest.approx(math.exp(-30 / 20))


def test_wasserstein_of_an_invalid_answer_is_zero() -> None:
    assert wasserstein_reward(answer(), QUERY, 3.0) == 0.0


@pytest.mark.parametrize(("length", "expected"), [(100, 1.0), (200, 1.0), (300, 0.5), (400, 0.0), (900, 0.0)])
def test_brevity_falls_between_its_two_lengths(length: int, expected: float) -> None:
    text = "<think>" + "x" * (length - 37) + "</think><answer>10-20</answer>"
    assert len(text) == length
    assert brevity_reward(parse_response(text), QUERY, BrevityConfig(200, 400)) == expected


def test_an_empty_response_earns_no_brevity() -> None:
    assert brevity_reward(parse_response(""), QUERY, BrevityConfig(200, 400)) == 0.0


def test_a_reward_of_the_users_is_found_by_its_path() -> None:
    assert load_reward("tests.rewards.hostile_reward.reward")(answer((10.0, 20.0)), QUERY) == 1.0


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_module.reward", "No module named 'no_such_module'"),
        ("tests.rewards.hostile_reward.absent", "absent"),
        ("tests.rewards.hostile_reward.not_a_function", "a function to call"),
        ("reward", "package.module.function"),
    ],
)
def test_a_path_that_is_no_reward_is_refused(path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        load_reward(path)
    assert "rewards.custom" in str(error.value) and path in str(error.value)


def test_a_value_that_is_no_reward_is_refused() -> None:
    with pytest.raises(RewardError, match=r"returned nan; a reward must be a number in \[0, 1\]"):
        load_reward("tests.rewards.hostile_reward.reward")(parse_response("<think>nan</think>"), QUERY)
