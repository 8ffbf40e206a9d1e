import math

import pytest
import torch

from museg_ray.algo.correction import CORRECTIONS, importance_weights

RATIOS = [1.5, 4.0, 0.25, 0.75]


def weigh(correction: str, ratios: list[float], limit: float = 2.0) -> tuple[list[float], list[bool]]:
    old = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    rollout = old - torch.tensor(ratios, dtype=torch.float64).log()
    weights, was_corrected = importance_weights(correction, old, rollout, limit)
    return weights.tolist(), was_corrected.tolist()


def test_weights_by_hand() -> None:
    assert weigh("none", RATIOS) == ([1.0] * 4, [False] * 4)
    weights, was_corrected = weigh("truncate", RATIOS)
    assert weights == pytest.approx([1.5, 2.0, 0.25, 0.75])
    assert was_corrected == [False, True, False, False]
    weights, was_corrected = weigh("mask", RATIOS)
    assert weights == pytest.approx([1.5, 0.0, 0.0, 0.75])
    assert was_corrected == [False, True, True, False]


def test_the_weight_is_learner_over_rollout() -> None:
    old, rollout = torch.tensor([-1.0]), torch.tensor([-1.5])
    (weight,), _ = importance_weights("truncate", old, rollout, 2.0)
    assert weight.item() == pytest.approx(math.exp(0.5))


def test_a_weight_exactly_at_a_limit_is_within() -> None:
    for correction, function in CORRECTIONS.items():
        weights, was_corrected = function(torch.tensor([2.0, 0.5]), 2.0)
        assert weights.tolist() == ([1.0, 1.0] if correction == "none" else [2.0, 0.5])
        assert was_corrected.tolist() == [False, False]


def test_weights_are_constants() -> None:
    old = torch.tensor([-1.0, -1.0], requires_grad=True)
    for correction in CORRECTIONS:
        assert not importance_weights(correction, old, torch.tensor([-2.0, -1.0]), 2.0)[0].requires_grad


def test_a_weight_that_overflows_is_beyond_the_limit() -> None:
    old, rollout = torch.tensor([-1.0]), torch.tensor([-500.0])
    found = {name: importance_weights(name, old, rollout, 2.0)[0].item() for name in CORRECTIONS}
    assert found == {"none": 1.0, "truncate": 2.0, "mask": 0.0}


@pytest.mark.parametrize("correction", ["truncate", "mask"])
def test_nan_is_not_hidden(correction: str) -> None:
    weights, _ = importance_weights(correction, torch.tensor([-1.0]), torch.tensor([math.nan]), 2.0)
    assert weights.isnan().all()
