import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.algo.correction import CORRECTIONS, LEVELS, importance_weights
from museg_ray.config.learning import AlgoConfig

RATIOS = [1.5, 4.0, 0.25, 0.75]
ONE = torch.tensor([0])
"""The response of a single token."""


def weigh(
    correction: str, ratios: Sequence[float], level: str = "token", responses: Sequence[int] = (), limit: float = 2.0
) -> tuple[list[float], list[bool]]:
    algo = AlgoConfig(correction=correction, correction_level=level, correction_limit=limit)
    old = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    rollout = old - torch.tensor(ratios, dtype=torch.float64).log()
    numbers = torch.tensor(responses or range(len(ratios)), dtype=torch.long)
    weights, was_corrected = importance_weights(old, rollout, numbers, algo)
    return weights.tolist(), was_corrected.tolist()


def test_weights_by_hand() -> None:
    assert weigh("none", RATIOS) == ([1.0] * 4, [False] * 4)
    weights, was_corrected = weigh("truncate", RATIOS)
    assert weights == pytest.approx([1.5, 2.0, 0.25, 0.75])
    assert was_corrected == [False, True, False, False]
    weights, was_corrected = weigh("mask", RATIOS)
    assert weights == pytest.approx([1.5, 0.0, 0.0, 0.75])
    assert was_corrected == [False, True, True, False]


# Two responses, of 3 and 2 tokens, mixed. Ratios of the first: 2, 4, 1; of the second: 0.5, 0.125.
MIXED, OF = [2.0, 0.5, 4.0, 1.0, 0.125], [0, 1, 0, 0, 1]


def test_weights_of_whole_responses_by_hand() -> None:
    # Products: 2 * 4 * 1 = 8, truncated to 3, and 0.5 * 0.125 = 1/16, below 1/3.
    weights, was_corrected = weigh("truncate", MIXED, "sequence", OF, limit=3.0)
    assert weights == pytest.approx([3, 1 / 16, 3, 3, 1 / 16])
    assert was_corrected == [True, False, True, True, False]
    assert weigh("mask", MIXED, "sequence", OF, limit=3.0) == ([0.0] * 5, [True] * 5)
    # Geometric means: the cube root of 8 = 2, within 3, and the square root of 1/16 = 1/4, below 1/3.
    weights, was_corrected = weigh("truncate", MIXED, "geometric", OF, limit=3.0)
    assert weights == pytest.approx([2, 1 / 4, 2, 2, 1 / 4])
    assert was_corrected == [False] * 5
    weights, was_corrected = weigh("mask", MIXED, "geometric", OF, limit=3.0)
    assert weights == pytest.approx([2, 0, 2, 2, 0])
    assert was_corrected == [False, True, False, False, True]


@pytest.mark.parametrize("level", LEVELS)
def test_a_response_of_one_token_has_that_tokens_weight_at_every_level(level: str) -> None:
    for correction in CORRECTIONS:
        weights, was_corrected = weigh(correction, RATIOS)
        assert weigh(correction, RATIOS, level) == (pytest.approx(weights), was_corrected)


@pytest.mark.parametrize("level", LEVELS)
@given(
    drifts=st.lists(st.floats(-60, 60), min_size=1, max_size=12),
    limit=st.floats(1, 100),
    num_responses=st.integers(1, 4),
)
def test_no_weight_is_above_the_limit_however_old_the_weights_that_sampled_it(
    level: str, drifts: list[float], limit: float, num_responses: int
) -> None:
    """A token of age a was sampled a updates ago, each of which moved its log-prob by its drift. Ages differ within a
    response, as they do when it goes on under newer weights."""
    old = torch.full((len(drifts),), -1.0)
    responses = torch.arange(len(drifts)) % num_responses
    for oldest in (0, 1, 2, 10):
        ages = torch.arange(len(drifts)) % (oldest + 1)
        rollout = old - ages * torch.tensor(drifts)
        for correction in CORRECTIONS:
            algo = AlgoConfig(correction=correction, correction_level=level, correction_limit=limit)
            weights, _ = importance_weights(old, rollout, responses, algo)
            assert ((weights >= 0.0) & (weights <= torch.tensor(limit))).all()
            assert oldest or (weights == 1.0).all(), "the learner's own tokens weigh 1"


@pytest.mark.parametrize("correction", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["sequence", "geometric"])
def test_nan_of_a_token_is_its_responses_and_of_no_other(correction: str, level: str) -> None:
    weights, _ = weigh(correction, [1.0, math.nan, 1.0, 1.0], level, [0, 1, 1, 0])
    assert [math.isnan(weight) for weight in weights] == [False, True, True, False]


def test_the_weight_is_learner_over_rollout() -> None:
    old, rollout = torch.tensor([-1.0]), torch.tensor([-1.5])
    (weight,), _ = importance_weights(old, rollout, ONE, AlgoConfig(correction="truncate"))
    assert weight.item() == pytest.approx(math.exp(0.5))


def test_a_weight_exactly_at_a_limit_is_within() -> None:
    for correction, function in CORRECTIONS.items():
        weights, was_corrected = function(torch.tensor([2.0, 0.5]), 2.0)
        assert weights.tolist() == ([1.0, 1.0] if correction == "none" else [2.0, 0.5])
        assert was_corrected.tolist() == [False, False]


def test_weights_are_constants() -> None:
    old = torch.tensor([-1.0, -1.0], requires_grad=True)
    for correction in CORRECTIONS:
        for level in LEVELS:
            algo = AlgoConfig(correction=correction, correction_level=level)
            weights, _ = importance_weights(old, torch.tensor([-2.0, -1.0]), torch.tensor([0, 0]), algo)
            assert not weights.requires_grad


def test_a_weight_that_overflows_is_beyond_the_limit() -> None:
    old, rollout = torch.tensor([-1.0]), torch.tensor([-500.0])
    for level in LEVELS:
        algos = [AlgoConfig(correction=name, correction_level=level) for name in ("none", "truncate", "mask")]
        found = [importance_weights(old, rollout, ONE, algo)[0].item() for algo in algos]
        assert found == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("correction", ["truncate", "mask"])
def test_nan_is_not_hidden(correction: str) -> None:
    algo = AlgoConfig(correction=correction)
    weights, _ = importance_weights(torch.tensor([-1.0]), torch.tensor([math.nan]), ONE, algo)
    assert weights.isnan().all()
