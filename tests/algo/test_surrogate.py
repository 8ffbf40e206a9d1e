import math
from collections.abc import Sequence

import pytest
import torch

from museg_ray.algo.surrogate import clipped_surrogate

LOW, HIGH = 0.2, 0.28


def textbook(ratio: float, advantage: float, dual_clip: float) -> float:
    """The loss as the papers write it."""
    clipped = min(max(ratio, 1 - LOW), 1 + HIGH)
    objective = min(ratio * advantage, clipped * advantage)
    if dual_clip and advantage < 0:
        objective = max(objective, dual_clip * advantage)
    return -objective


def run(
    ratios: Sequence[float], advantages: Sequence[float], dual_clip: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[list[float], list[bool], list[float]]:
    """Losses, cut tokens and gradients; an old log-prob of -2 for all."""
    old = torch.full((len(ratios),), -2.0, dtype=dtype)
    logprobs = torch.tensor([-2.0 + math.log(ratio) for ratio in ratios], dtype=dtype, requires_grad=True)
    return run_logprobs(logprobs, old, torch.tensor(advantages, dtype=dtype), dual_clip)


def run_logprobs(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, dual_clip: float = 0.0
) -> tuple[list[float], list[bool], list[float]]:
    losses, was_cut = clipped_surrogate(logprobs, old, advantages, clip_low=LOW, clip_high=HIGH, dual_clip=dual_clip)
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    return losses.tolist(), was_cut.tolist(), gradient.tolist()


def test_losses_by_hand() -> None:
    losses, was_cut, gradient = run([1.1, 1.5, 0.5, 1.5, 0.5], [2.0, 2.0, 2.0, -1.0, -1.0])
    assert losses == pytest.approx([-1.1 * 2, -1.28 * 2, -0.5 * 2, 1.5, 0.8])
    assert was_cut == [False, True, False, False, True]
    assert gradient == pytest.approx([-1.1 * 2, 0.0, -0.5 * 2, 1.5, 0.0])


def test_dual_clip_bounds_the_loss_of_bad_tokens_alone() -> None:
    losses, was_cut, gradient = run([5.0, 5.0, 2.9, 0.5], [-2.0, 2.0, -2.0, -2.0], dual_clip=3.0)
    assert losses == pytest.approx([3.0 * 2, -1.28 * 2, 2.9 * 2, 0.8 * 2])
    assert was_cut == [True, True, False, True]
    assert gradient == pytest.approx([0.0, 0.0, 2.9 * 2, 0.0])
    assert run([5.0, 0.5, 5.0], [2.0, 2.0, 0.0], dual_clip=3.0) == run([5.0, 0.5, 5.0], [2.0, 2.0, 0.0])


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_it_is_the_textbooks_loss_for_every_ratio_and_advantage(dual_clip: float) -> None:
    ratios = [0.01 * step for step in range(1, 500)]
    for advantage in (-1.5, -1e-3, 0.0, 1e-3, 1.5):
        losses, was_cut, gradient = run(ratios, [advantage] * len(ratios), dual_clip)
        assert losses == pytest.approx([textbook(ratio, advantage, dual_clip) for ratio in ratios], rel=1e-9)
        # The gradient is -r A by the log-prob, and 0 exactly where the clip holds the ratio.
        plain = [-ratio * advantage for ratio in ratios]
        kept = [0.0 if cut else value for cut, value in zip(was_cut, plain, strict=True)]
        assert gradient == pytest.approx(kept, rel=1e-9)
        differs = [abs(loss - value) > 1e-9 for loss, value in zip(losses, plain, strict=True)]
        assert was_cut == differs


@pytest.mark.parametrize(
    ("bound", "advantage", "outside"), [(1 + HIGH, 1.0, 1e-6), (1 - LOW, -1.0, -1e-6), (3, -1, 1e-6)]
)
def test_a_token_exactly_at_a_bound_keeps_its_gradient(bound: float, advantage: float, outside: float) -> None:
    logs = [math.log(bound), math.log(bound) + outside, math.log(bound) - outside]
    logprobs = torch.tensor(logs, dtype=torch.float64, requires_grad=True)
    old, advantages = torch.zeros(3, dtype=torch.float64), torch.full((3,), advantage, dtype=torch.float64)
    losses, was_cut, gradient = run_logprobs(logprobs, old, advantages, dual_clip=3.0)
    assert was_cut == [False, True, False]
    assert losses[:2] == pytest.approx([-bound * advantage] * 2)
    assert gradient == pytest.approx([-bound * advantage, 0.0, -bound * advantage], rel=1e-5)


def test_on_policy_nothing_is_clipped_even_without_any_room() -> None:
    logprobs = torch.tensor([-1.0, -30.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0])
    losses, was_cut = clipped_surrogate(
        logprobs, logprobs.detach(), advantages, clip_low=0.0, clip_high=0.0, dual_clip=0.0
    )
    assert was_cut.tolist() == [False, False]
    assert torch.autograd.grad(losses.sum(), logprobs)[0].tolist() == [-1.0, 1.0]


def test_the_lower_bound_can_be_taken_away() -> None:
    logprobs = torch.tensor([-200.0], requires_grad=True)
    losses, was_cut = clipped_surrogate(
        logprobs, torch.tensor([-1.0]), torch.tensor([-1.0]), clip_low=1.0, clip_high=0.2, dual_clip=0.0
    )
    assert (losses.tolist(), was_cut.tolist()) == ([0.0], [False])  # exp(-199) is 0 in float32
    assert torch.autograd.grad(losses.sum(), logprobs)[0].tolist() == [0.0]


def test_a_ratio_that_overflows_is_nan_nowhere() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -500.0, -500.0, -1.0], requires_grad=True)
    old = torch.tensor([-500.0, -500.0, -500.0, -1.0, -1.0, -500.0])
    advantages = torch.tensor([2.0, -2.0, 0.0, 2.0, -2.0, -2.0])
    losses, was_cut, gradient = run_logprobs(logprobs, old, advantages, dual_clip=3.0)
    assert losses == pytest.approx([-2.56, 6.0, 0.0, 0.0, 1.6, 6.0])
    assert was_cut == [True, True, False, False, True, True]
    assert gradient == [0.0] * 6


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_a_token_of_no_advantage_has_no_loss_even_where_its_ratio_overflows(dual_clip: float) -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    found = run_logprobs(logprobs, torch.tensor([-500.0]), torch.tensor([0.0]), dual_clip)
    assert found == ([0.0], [False], [0.0])


def test_without_a_dual_clip_an_overflow_of_a_bad_token_is_seen() -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    losses, was_cut, gradient = run_logprobs(logprobs, torch.tensor([-500.0]), torch.tensor([-2.0]))
    assert (losses, was_cut, gradient) == ([math.inf], [False], [math.inf])


@pytest.mark.parametrize("broken", range(3))
def test_nan_is_not_hidden(broken: int) -> None:
    values = [torch.tensor([-1.0]), torch.tensor([-1.5]), torch.tensor([1.0])]
    values[broken] = torch.tensor([math.nan])
    losses, _ = clipped_surrogate(*values, clip_low=LOW, clip_high=HIGH, dual_clip=3.0)
    assert losses.isnan().all()
