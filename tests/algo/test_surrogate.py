import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.algo.surrogate import SURROGATES, cispo_surrogate, clipped_surrogate, gspo_surrogate
from museg_ray.config.learning import AlgoConfig

LOW, HIGH = 0.2, 0.28
CLIPS = AlgoConfig(clip_low=LOW, clip_high=HIGH)


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
    algo = replace(CLIPS, dual_clip=dual_clip)
    losses, was_cut = clipped_surrogate(logprobs, old, advantages, torch.arange(len(old)), algo)
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
    algo = AlgoConfig(clip_low=0.0, clip_high=0.0)
    losses, was_cut = clipped_surrogate(logprobs, logprobs.detach(), advantages, torch.arange(2), algo)
    assert was_cut.tolist() == [False, False]
    assert torch.autograd.grad(losses.sum(), logprobs)[0].tolist() == [-1.0, 1.0]


def test_the_lower_bound_can_be_taken_away() -> None:
    logprobs = torch.tensor([-200.0], requires_grad=True)
    algo, minus_1 = AlgoConfig(clip_low=1.0), torch.tensor([-1.0])
    losses, was_cut = clipped_surrogate(logprobs, minus_1, minus_1, torch.tensor([0]), algo)
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


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("broken", range(3))
def test_nan_is_not_hidden(broken: int, surrogate: str) -> None:
    values = [torch.tensor([-1.0]), torch.tensor([-1.5]), torch.tensor([1.0])]
    values[broken] = torch.tensor([math.nan])
    losses, _ = SURROGATES[surrogate](values[0], values[1], values[2], torch.tensor([0]), replace(CLIPS, dual_clip=3.0))
    assert losses.isnan().all()


def test_gspo_by_hand() -> None:
    # Two responses, of 3 and 2 tokens, mixed. Ratios of the first: 0.5, 2, 1.331, so s = 1.331 ** (1/3) = 1.1, within
    # 1.28: each token has the loss -1.1 * 2. Of the second: 4 and 1, so s = 2, above 1.28: -1.28 * 1, no gradient.
    # d s / d logprob is s / n at each token, and three tokens have s in their loss: -2 * 1.1 / 3 * 3 = -2.2 at each.
    responses = torch.tensor([0, 1, 0, 0, 1])
    logprobs = torch.tensor([0.5, 4.0, 2.0, 1.331, 1.0], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([2.0, 1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    losses, was_cut = gspo_surrogate(logprobs, torch.zeros_like(advantages), advantages, responses, CLIPS)
    assert losses.tolist() == pytest.approx([-2.2, -1.28, -2.2, -2.2, -1.28])
    assert was_cut.tolist() == [False, True, False, False, True]
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([-2.2, 0.0, -2.2, -2.2, 0.0])


@pytest.mark.parametrize("dual_clip", [0.0, 3.0])
def test_gspo_of_responses_of_one_token_is_the_clipped_surrogate(dual_clip: float) -> None:
    algo = replace(CLIPS, dual_clip=dual_clip)
    old, noise, advantages = torch.randn(3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for surrogate in (gspo_surrogate, clipped_surrogate):
        logprobs = (old + noise).requires_grad_()
        losses, was_cut = surrogate(logprobs, old, advantages, torch.randperm(200), algo)
        found.append((losses, was_cut, torch.autograd.grad(losses.sum(), logprobs)[0]))
    assert 20 < found[0][1].sum() < 180
    for gspo, plain in zip(*found, strict=True):
        torch.testing.assert_close(gspo, plain)


def test_cispo_by_hand() -> None:
    # Ratios 1.1, 1.5, 0.5, 1.5, 0.5, held within 0.8 and 1.28 for either sign of A; log-probs log(ratio) - 2.
    ratios, held = [1.1, 1.5, 0.5, 1.5, 0.5, 1.5], [1.1, 1.28, 0.8, 1.28, 0.8, 1.28]
    advantages = [2.0, 2.0, 2.0, -1.0, -1.0, 0.0]
    old = torch.full((6,), -2.0, dtype=torch.float64)
    logprobs = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    weights = torch.tensor(advantages, dtype=torch.float64)
    losses, was_clipped = cispo_surrogate(logprobs, old, weights, torch.arange(6), CLIPS)
    by_hand = [-h * a * (math.log(r) - 2) for h, a, r in zip(held, advantages, ratios, strict=True)]
    assert losses.tolist() == pytest.approx(by_hand)
    assert was_clipped.tolist() == [False, True, True, True, True, False]
    # No token loses its gradient: it is -(held ratio) A, where the clipped surrogate has 0 for two of them.
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([-h * a for h, a in zip(held, advantages, strict=True)])


def test_cispo_holds_a_ratio_that_overflows_and_may_have_no_lower_bound() -> None:
    logprobs, old = torch.tensor([-1.0, -200.0], requires_grad=True), torch.tensor([-500.0, -1.0])
    algo = AlgoConfig(clip_low=1.0, clip_high=HIGH)
    losses, was_clipped = cispo_surrogate(logprobs, old, torch.tensor([-2.0, -2.0]), torch.arange(2), algo)
    assert was_clipped.tolist() == [True, False]
    assert torch.autograd.grad(losses.sum(), logprobs)[0].tolist() == pytest.approx([2.56, 0.0])


@given(data=st.data(), num_tokens=st.integers(1, 30))
def test_on_policy_every_surrogate_has_the_plain_policy_gradient(data: st.DataObject, num_tokens: int) -> None:
    """-A at each token, with weights that are the same for a response's tokens: of it GSPO is the sum only so."""
    of = data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=num_tokens, max_size=num_tokens))
    responses = torch.tensor(of)
    old, by_response, shares = torch.randn(3, num_tokens, generator=torch.Generator().manual_seed(num_tokens))
    advantages, weights = by_response[responses], shares[responses]
    for surrogate in SURROGATES.values():
        logprobs = old.clone().requires_grad_()
        losses, was_cut = surrogate(logprobs, old, advantages, responses, AlgoConfig(clip_low=0.0, clip_high=0.0))
        (gradient,) = torch.autograd.grad((weights * losses).sum(), logprobs)
        torch.testing.assert_close(gradient, -weights * advantages)
        assert not was_cut.any()
