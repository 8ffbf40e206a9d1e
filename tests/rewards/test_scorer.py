"""Batches in one process, with a reward of the user's that misbehaves."""

import signal
import time

import pytest

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.rewards.recipe import Recipe
from museg_ray.rewards.scorer import BatchScorer, pack, pack_outcomes, unpack, unpack_outcomes
from museg_ray.types import GroundingQuery, RewardParts

WEIGHTS = RewardWeights(matching=1.0, timestamp=1.0, format=1.0)
CUSTOM = RewardWeights(custom=1.0)
QUERY = GroundingQuery("train/0", "video.mp4", "the red circle is visible", ((1.0, 2.0),), 12.0)
HOSTILE = RewardConfig(custom="tests.rewards.hostile_reward.reward", response_timeout_s=0.2)
HOSTILE_1_S = RewardConfig(custom="tests.rewards.hostile_reward.reward", response_timeout_s=1.0)


def doing(deed: str) -> str:
    return f"<think>{deed}</think><answer>1-2</answer>"


def test_outcomes_are_those_of_the_recipe_in_order() -> None:
    texts = [doing("1 2"), "nothing", doing("3")]
    scored = BatchScorer(RewardConfig()).score([(texts, QUERY, WEIGHTS), (texts[::-1], QUERY, CUSTOM)])
    recipe = Recipe(RewardConfig())
    assert scored[0] == [recipe.score(text, QUERY, WEIGHTS) for text in texts]
    assert scored[1] == [recipe.score(text, QUERY, CUSTOM) for text in texts[::-1]]


@pytest.mark.parametrize("deed", ["sleep", "spin", "spin and catch"])
def test_a_response_that_takes_too_long_is_broken_off_and_ends_the_batch(deed: str) -> None:
    texts = [doing("fine"), doing(deed), doing("not reached")]
    start_s = time.monotonic()
    outcomes, others = BatchScorer(HOSTILE).score([(texts, QUERY, CUSTOM), (texts, QUERY, CUSTOM)])
    assert time.monotonic() - start_s < 5  # the response would take a minute
    assert isinstance(outcomes[0], RewardParts)
    assert outcomes[1:] == ["not scored within rewards.response_timeout_s = 0.2 s"]
    assert others == []


def test_a_batch_of_slow_responses_ends_after_its_time_and_breaks_none_of_them_off() -> None:
    (outcomes,) = BatchScorer(HOSTILE_1_S).score([([doing("slow")] * 20, QUERY, CUSTOM)])
    assert 3 <= len(outcomes) <= 5
    assert all(isinstance(outcome, RewardParts) for outcome in outcomes)


@pytest.mark.parametrize(("deed", "says"), [("raise", "ValueError: no such thing"), ("nan", "RewardError: ")])
def test_a_response_that_the_users_reward_fails_on_has_no_score(deed: str, says: str) -> None:
    (outcomes,) = BatchScorer(HOSTILE).score([([doing(deed), doing("fine")], QUERY, CUSTOM)])
    assert str(outcomes[0]).startswith(says)
    assert isinstance(outcomes[1], RewardParts)


def test_scoring_leaves_the_processs_alarm_as_it_was() -> None:
    before = signal.getsignal(signal.SIGALRM)
    BatchScorer(HOSTILE).score([([doing("sleep")], QUERY, CUSTOM)])
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_requests_and_replies_survive_the_wire() -> None:
    groups = [([doing("1 2"), "\ud800"], QUERY, WEIGHTS), ([], QUERY, CUSTOM)]
    assert unpack(pack(groups)) == [((doing("1 2"), "\ud800"), QUERY, WEIGHTS), ((), QUERY, CUSTOM)]
    outcomes = BatchScorer(RewardConfig()).score(groups)
    outcomes[0].append("a reason")
    assert unpack_outcomes(pack_outcomes(outcomes)) == outcomes
    assert isinstance(unpack_outcomes(pack_outcomes(outcomes))[0][0], RewardParts)
