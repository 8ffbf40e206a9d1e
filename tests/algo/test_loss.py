import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from museg_ray.algo.aggregation import LOSS_MEANS, token_weights
from museg_ray.algo.kl import KL_ESTIMATORS
from museg_ray.algo.loss import CLIPPED, CORRECTED, CORRECTION, ENTROPY, KL, WEIGHT, LossTokens, grpo_loss
from museg_ray.config.learning import AlgoConfig

NO_KL = AlgoConfig(beta=0.0)
LOGPROBS = [-0.5, -1.0, -2.0, -3.0]


def tokens_of(logprobs: Tensor, **changes: Any) -> LossTokens:
    """Two responses, of 1 and 3 tokens, with advantages 1 and -2, at the first update, weighed by sequence."""
    old = logprobs.detach().clone()
    advantages, weights = (
        logprobs.new_tensor([1.0, -2.0, -2.0, -2.0]),
        logprobs.new_tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]),
    )
    responses = torch.tensor([0, 1, 1, 1])
    return replace(LossTokens(logprobs, old, old, None, None, advantages, weights, responses), **changes)


def some_logprobs() -> Tensor:
    return torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)


def off_policy_tokens(seed: int = 0, num_tokens: int = 40) -> LossTokens:
    """Everything differs from everything, enough for each clip, truncation and mask to act on some tokens."""
    generator = torch.Generator().manual_seed(seed)
    old = -1.0 - 2.0 * torch.rand(num_tokens, generator=generator, dtype=torch.float64)
    near, far, other, noise = torch.randn(4, num_tokens, generator=generator, dtype=torch.float64)
    entropies, weights = torch.rand(2, num_tokens, generator=generator, dtype=torch.float64)
    return LossTokens(
        logprobs=(old + near).requires_grad_(),
        old_logprobs=old,
        rollout_logprobs=old + 0.7 * far,
        reference_logprobs=old + other,
        entropies=entropies.requires_grad_(),
        advantages=noise,
        weights=weights / num_tokens,
        responses=torch.randint(num_tokens // 4, (num_tokens,), generator=generator),
    )


def part_of(tokens: LossTokens, index: slice | Tensor) -> LossTokens:
    values = {field.name: getattr(tokens, field.name) for field in fields(LossTokens)}
    parts: dict[str, Any] = {name: None if value is None else value[index] for name, value in values.items()}
    return LossTokens(**parts)


def gradient(tokens: LossTokens, algo: AlgoConfig) -> Tensor:
    return torch.autograd.grad(grpo_loss(tokens, algo)[0], tokens.logprobs)[0]


def test_loss_and_gradient_by_hand() -> None:
    # On policy the ratio is 1: the mean over responses of minus their advantage, (-1 + 2) / 2.
    tokens = tokens_of(some_logprobs())
    loss, stats = grpo_loss(tokens, NO_KL)
    assert loss.item() == pytest.approx(0.5)
    assert gradient(tokens, NO_KL).tolist() == pytest.approx([-1 / 2, 2 / 6, 2 / 6, 2 / 6])
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(
        {WEIGHT: 1.0, CORRECTION: 1.0, CORRECTED: 0.0, CLIPPED: 0.0}
    )


def test_every_term_by_hand() -> None:
    # Ratios 1.5, 0.5, 1, 4; w = 0.5, 4 (truncated to 2), 1, 1; d = ln 2, 0, 0, -1.
    ln = math.log
    logprobs = some_logprobs()
    old = logprobs.detach() - torch.tensor([ln(1.5), ln(0.5), 0.0, ln(4.0)])
    tokens = tokens_of(
        logprobs,
        old_logprobs=old,
        rollout_logprobs=old - torch.tensor([ln(0.5), ln(4.0), 0.0, 0.0]),
        reference_logprobs=logprobs.detach() + torch.tensor([ln(2.0), 0.0, 0.0, -1.0]),
        entropies=torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64),
    )
    algo = AlgoConfig(beta=0.1, clip_high=0.28, dual_clip=3.0, entropy_bonus=0.01, correction="truncate")
    loss, stats = grpo_loss(tokens, algo)
    k3 = [2 - ln(2.0) - 1, 0.0, 0.0, math.exp(-1.0) + 1 - 1]
    per_token = [
        0.5 * -1.28 * 1 + 0.1 * k3[0] - 0.01 * 1.0,
        2.0 * 0.8 * 2 - 0.01 * 2.0,
        1.0 * 2 - 0.01 * 0.5,
        3.0 * 2 + 0.1 * k3[3],
    ]
    assert loss.item() == pytest.approx(per_token[0] / 2 + sum(per_token[1:]) / 6)
    assert {name: value.item() for name, value in stats.items()} == pytest.approx(
        {
            WEIGHT: 1.0,
            KL: k3[0] / 2 + k3[3] / 6,
            CLIPPED: 1 / 2 + 1 / 6 + 1 / 6,
            ENTROPY: 1.0 / 2 + (2.0 + 0.5) / 6,
            CORRECTION: 0.5 / 2 + (2.0 + 1.0 + 1.0) / 6,
            CORRECTED: 1 / 6,
        }
    )


def earlier_loss(
    logprobs: Tensor, reference: Tensor, advantages: Tensor, lengths: list[int], kept: Tensor, beta: float
) -> tuple[Tensor, float]:
    """One group's loss and KL in a loop over its responses: the paper's, with one update a rollout and without clip."""
    losses, kls, first = [], [], 0
    for length in lengths:
        mine = [token for token in range(first, first + length) if kept[token]]
        first += length
        d = [reference[token] - logprobs[token] for token in mine]
        kl = [torch.exp(x) - x - 1 for x in d]
        ratio = [torch.exp(logprobs[token] - logprobs[token].detach()) for token in mine]
        terms = [-r * advantages[token] + beta * x for r, token, x in zip(ratio, mine, kl, strict=True)]
        losses.append(torch.stack(terms).mean() if mine else torch.zeros((), dtype=logprobs.dtype))
        kls.append(sum(x.item() for x in kl) / len(mine) if mine else 0.0)
    return torch.stack(losses).mean(), sum(kls) / len(kls)


@pytest.mark.parametrize("seed", range(4))
def test_the_defaults_are_the_loss_of_one_update_a_rollout_as_it_has_always_been(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    algo, groups = AlgoConfig(), [[3, 0, 7, 1], [2, 5]]
    parts, losses, kls = [], [], []
    for lengths in groups:
        num_tokens = sum(lengths)
        logprobs, reference = -3.0 * torch.rand(2, num_tokens, generator=generator, dtype=torch.float64)
        logprobs.requires_grad_()
        advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
        advantages = advantages.repeat_interleave(torch.tensor(lengths))
        kept = torch.rand(num_tokens, generator=generator) < 0.8
        loss, kl = earlier_loss(logprobs, reference, advantages, lengths, kept, algo.beta)
        losses.append(loss)
        kls.append(kl)
        parts.append((logprobs, reference, advantages, lengths, kept))
    expected = torch.stack(losses).mean()

    leaves = [part[0] for part in parts]
    counts = [[int(piece.sum()) for piece in kept.split(lengths)] for *_, lengths, kept in parts]
    weights = token_weights(algo.loss_mean, counts, max_completion_tokens=99)
    total, kl, weight = torch.zeros((), dtype=torch.float64), 0.0, 0.0
    for (logprobs, reference, advantages, lengths, kept), weigh in zip(parts, weights, strict=True):
        policy, spread = logprobs[kept], torch.tensor(weigh).double().repeat_interleave(torch.tensor(lengths))
        old = policy.detach()
        loss, stats = grpo_loss(
            LossTokens(policy, old, old, reference[kept], None, advantages[kept], spread[kept], torch.arange(len(old))),
            algo,
        )
        total, kl, weight = total + loss, kl + stats[KL].item(), weight + stats[WEIGHT].item()
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert kl == pytest.approx(sum(kls) / len(kls), abs=1e-6)
    for ours, theirs in zip(torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


VARIANTS = [
    AlgoConfig(beta=beta, kl_estimator=kl, correction=correction, dual_clip=dual, clip_high=high, entropy_bonus=bonus)
    for (beta, kl), correction, (dual, high), bonus in product(
        [(0.0, "k3"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3")],
        ["none", "truncate", "mask"],
        [(0.0, 0.2), (1.5, 0.28)],
        [0.0, 0.05],
    )
]
BY_RESPONSE = [
    AlgoConfig(
        beta=0.3,
        surrogate=surrogate,
        clip_low=0.1,
        clip_high=0.1,
        correction=correction,
        correction_level=level,
        correction_limit=1.3,
    )
    for surrogate, correction, level in product(
        ["ppo", "gspo", "cispo"], ["truncate", "mask"], ["sequence", "geometric"]
    )
]
"""Those whose correction goes by response."""


def label(algo: AlgoConfig) -> str:
    return (
        f"{algo.surrogate}-{algo.beta}-{algo.kl_estimator}-{algo.correction}-{algo.correction_level}-{algo.dual_clip}"
        f"-{algo.entropy_bonus}"
    )


@pytest.mark.parametrize("algo", VARIANTS + [algo for algo in BY_RESPONSE if algo.surrogate != "cispo"], ids=label)
def test_gradients_agree_with_finite_differences(algo: AlgoConfig) -> None:
    """But for CISPO's, whose ratio is a constant for the gradient and not for a difference."""
    tokens = off_policy_tokens()

    def loss(logprobs: Tensor, entropies: Tensor) -> Tensor:
        return grpo_loss(replace(tokens, logprobs=logprobs, entropies=entropies), algo)[0]

    assert tokens.entropies is not None
    inputs = (tokens.logprobs, tokens.entropies)
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7, rtol=1e-5)
    stats = grpo_loss(tokens, algo)[1]
    assert stats[CLIPPED] > 0 and (stats[CORRECTED] > 0) == (algo.correction != "none")


def assert_sums_are_those_of_the_whole(
    tokens: LossTokens, algo: AlgoConfig, parts: Sequence[LossTokens]
) -> dict[str, torch.Tensor]:
    """Loss, statistics and gradient; the statistics."""
    (loss, stats), of_parts = grpo_loss(tokens, algo), [grpo_loss(part, algo) for part in parts]
    total = torch.stack([part for part, _ in of_parts]).sum()
    torch.testing.assert_close(total, loss)
    for name, value in stats.items():
        torch.testing.assert_close(sum(part[name] for _, part in of_parts), value)
    (whole,) = torch.autograd.grad(loss, tokens.logprobs)
    (summed,) = torch.autograd.grad(total, tokens.logprobs)
    torch.testing.assert_close(summed, whole)
    return stats


@pytest.mark.parametrize("algo", VARIANTS[-4:] + VARIANTS[:2], ids=label)
def test_the_sums_over_any_split_of_the_tokens_are_those_of_the_whole(algo: AlgoConfig) -> None:
    tokens = off_policy_tokens(seed=1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert_sums_are_those_of_the_whole(
        tokens, algo, [part_of(tokens, index) for index in order.split([7, 0, 1, 25, 7])]
    )


@pytest.mark.parametrize("algo", BY_RESPONSE, ids=label)
def test_the_sums_over_any_split_of_the_responses_are_those_of_the_whole(algo: AlgoConfig) -> None:
    tokens = off_policy_tokens(seed=1)
    of_part, parts = tokens.responses % 3, []
    for number in range(3):
        part = part_of(tokens, of_part == number)
        _, renumbered = torch.unique(part.responses, return_inverse=True)
        parts.append(replace(part, responses=renumbered))
    stats = assert_sums_are_those_of_the_whole(tokens, algo, parts)
    assert 0 < stats[CORRECTED] < stats[WEIGHT] and stats[CLIPPED] > 0


@pytest.mark.parametrize("surrogate", ["ppo", "gspo", "cispo"])
def test_on_policy_the_gradient_is_the_plain_policy_gradient(surrogate: str) -> None:
    tokens = tokens_of(some_logprobs())
    algo = AlgoConfig(beta=0.0, surrogate=surrogate, correction="mask", correction_level="sequence")
    assert gradient(tokens, algo).tolist() == pytest.approx([-1 / 2, 2 / 6, 2 / 6, 2 / 6])


def test_gspo_loss_by_hand() -> None:
    # Ratios 1.2; 0.5, 2, 1.331. s = 1.2 and 1.331 ** (1/3) = 1.1; at clips of 0.15 the first is held at 1.15 and has no
    # gradient, the second is within. Mean over responses of -s A: (-1.15 * 1 + 1.1 * 2) / 2.
    logprobs = some_logprobs()
    old = logprobs.detach() - torch.tensor([1.2, 0.5, 2.0, 1.331], dtype=torch.float64).log()
    tokens = tokens_of(logprobs, old_logprobs=old)
    algo = AlgoConfig(beta=0.0, surrogate="gspo", clip_low=0.15, clip_high=0.15)
    loss, stats = grpo_loss(tokens, algo)
    assert loss.item() == pytest.approx((-1.15 + 2.2) / 2)
    assert gradient(tokens, algo).tolist() == pytest.approx([0.0] + [2.2 / 2 / 3] * 3)
    assert stats[CLIPPED].item() == pytest.approx(1 / 2)


def test_a_masked_response_has_no_policy_gradient_at_any_of_its_tokens() -> None:
    # w of the second response: e * 1 * 1, above 2. Its ratios of new to old overflow float32.
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    rollout = logprobs.detach() - torch.tensor([0.0, 400.0, 400.0, 400.0])
    for surrogate in ("ppo", "gspo", "cispo"):
        tokens = tokens_of(
            logprobs, old_logprobs=rollout + torch.tensor([0.0, 1.0, 0.0, 0.0]), rollout_logprobs=rollout
        )
        algo = AlgoConfig(beta=0.0, surrogate=surrogate, correction="mask", correction_level="sequence")
        assert gradient(tokens, algo).tolist() == pytest.approx([-1 / 2, 0.0, 0.0, 0.0])
        assert grpo_loss(tokens, algo)[1][CORRECTED].item() == pytest.approx(1 / 2)


@pytest.mark.parametrize("algo", VARIANTS[-2:], ids=label)
def test_statistics_are_scalars_without_gradient(algo: AlgoConfig) -> None:
    _, stats = grpo_loss(off_policy_tokens(), algo)
    assert set(stats) == {WEIGHT, KL, CLIPPED, ENTROPY, CORRECTION, CORRECTED}
    assert all(value.shape == () and not value.requires_grad for value in stats.values())


def test_the_kl_statistic_is_k3_whatever_is_in_the_loss() -> None:
    tokens = off_policy_tokens()
    values = {
        grpo_loss(tokens, AlgoConfig(beta=beta, kl_estimator=name))[1][KL].item()
        for name, beta in product(KL_ESTIMATORS, [0.0, 0.5])
    }
    assert len(values) == 1
    assert tokens.reference_logprobs is not None
    d = [r - p for r, p in zip(tokens.reference_logprobs.tolist(), tokens.logprobs.tolist(), strict=True)]
    expected = sum(w * (math.exp(x) - x - 1) for w, x in zip(tokens.weights.tolist(), d, strict=True))
    assert values.pop() == pytest.approx(expected)


def test_kl_pulls_towards_the_reference() -> None:
    logprobs = some_logprobs()
    reference = logprobs.detach() + torch.tensor([1.0, 0.0, -1.0, 0.0])
    tokens = tokens_of(logprobs, reference_logprobs=reference, advantages=torch.zeros(4, dtype=torch.float64))
    first, same, third, _ = gradient(tokens, AlgoConfig(beta=1.0)).tolist()
    assert first < 0.0 and same == 0.0 and third > 0.0  # a step against the gradient raises the first log-prob


def test_an_entropy_bonus_rewards_entropy() -> None:
    entropies = torch.ones(4, dtype=torch.float64, requires_grad=True)
    tokens = tokens_of(some_logprobs(), entropies=entropies)
    loss, _ = grpo_loss(tokens, AlgoConfig(beta=0.0, entropy_bonus=0.5))
    assert torch.autograd.grad(loss, entropies)[0].tolist() == pytest.approx([-0.25, -0.5 / 6, -0.5 / 6, -0.5 / 6])


def test_a_masked_token_keeps_its_kl_and_entropy_and_loses_its_policy_gradient() -> None:
    logprobs, entropies = some_logprobs(), torch.ones(4, dtype=torch.float64, requires_grad=True)
    rollout = logprobs.detach() - torch.tensor([0.0, 3.0, 0.0, 0.0])
    reference = logprobs.detach() + 1.0
    tokens = tokens_of(logprobs, rollout_logprobs=rollout, reference_logprobs=reference, entropies=entropies)
    algo = AlgoConfig(beta=0.1, correction="mask", entropy_bonus=0.5)
    loss, stats = grpo_loss(tokens, algo)
    by_logprob, by_entropy = torch.autograd.grad(loss, (logprobs, entropies))
    pull = 0.1 * (1 - math.e)
    assert by_logprob.tolist() == pytest.approx([(pull - 1) / 2, pull / 6, (pull + 2) / 6, (pull + 2) / 6])
    assert by_entropy.tolist() == pytest.approx([-0.25, -0.5 / 6, -0.5 / 6, -0.5 / 6])
    assert stats[CORRECTED].item() == pytest.approx(1 / 6)


def test_a_masked_token_whose_ratio_overflows_is_nan_nowhere() -> None:
    # float32: exp(499) is inf. Without the mask the loss of the second token is.
    logprobs = torch.tensor([-0.5, -1.0, -2.0, -3.0], requires_grad=True)
    old = torch.tensor([-0.5, -500.0, -2.0, -3.0])
    tokens = tokens_of(logprobs, old_logprobs=old, rollout_logprobs=torch.tensor([-0.5, -1.0, -2.0, -3.0]))
    loss, stats = grpo_loss(tokens, AlgoConfig(beta=0.0, correction="mask"))
    assert loss.item() == pytest.approx(-1 / 2 + 2 / 6 + 2 / 6)
    assert gradient(tokens, AlgoConfig(beta=0.0, correction="mask")).tolist() == pytest.approx([-0.5, 0, 1 / 3, 1 / 3])
    assert stats[CLIPPED] == 0.0  # what the mask took is not the clip's
    assert grpo_loss(tokens, NO_KL)[0].item() == math.inf


def test_an_infinite_kl_is_seen_in_the_loss_only_where_the_loss_has_it() -> None:
    logprobs = torch.tensor([-200.0, -1.0, -2.0, -3.0], requires_grad=True)
    tokens = tokens_of(logprobs, reference_logprobs=torch.tensor([-1.0, -1.0, -2.0, -3.0]))
    loss, stats = grpo_loss(tokens, NO_KL)
    assert loss.item() == pytest.approx(0.5) and stats[KL].item() == math.inf
    assert grpo_loss(tokens, AlgoConfig(beta=0.1))[0].item() == math.inf
    assert gradient(tokens, NO_KL).isfinite().all()


@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "rollout_logprobs", "reference_logprobs", "advantages"])
def test_nan_is_not_hidden(name: str) -> None:
    tokens = off_policy_tokens()
    broken = getattr(tokens, name).detach().clone()
    broken[5] = math.nan
    for correction in ("truncate", "mask"):
        loss, _ = grpo_loss(replace(tokens, **{name: broken}), AlgoConfig(correction=correction))
        assert loss.isnan()


@pytest.mark.parametrize("algo", VARIANTS + BY_RESPONSE, ids=label)
def test_without_tokens_the_loss_is_zero_and_backward_works(algo: AlgoConfig) -> None:
    everything = off_policy_tokens()
    tokens = part_of(everything, slice(0, 0))
    loss, stats = grpo_loss(tokens, algo)
    assert loss.item() == 0.0 and all(value.item() == 0.0 for value in stats.values())
    (whole,) = torch.autograd.grad(loss, everything.logprobs)
    assert whole.tolist() == [0.0] * 40


@pytest.mark.parametrize("loss_mean", sorted(LOSS_MEANS))
def test_a_loss_mean_by_hand(loss_mean: str) -> None:
    # One group of two responses, of 1 and 3 tokens, with losses -1 and 2 for each token.
    (response_weights,) = token_weights(loss_mean, [[1, 3]], max_completion_tokens=10)
    weights = torch.tensor(response_weights).double().repeat_interleave(torch.tensor([1, 3]))
    loss, _ = grpo_loss(tokens_of(some_logprobs(), weights=weights), NO_KL)
    expected = {"sequence": (-1 + 2) / 2, "token": (-1 + 3 * 2) / 4, "constant": (-1 + 3 * 2) / 2 / 10}
    assert loss.item() == pytest.approx(expected[loss_mean])


def test_a_term_that_lacks_its_input_is_refused() -> None:
    with pytest.raises(AssertionError, match="reference"):
        grpo_loss(tokens_of(some_logprobs()), AlgoConfig(beta=0.1))
    with pytest.raises(AssertionError, match="entropies"):
        grpo_loss(tokens_of(some_logprobs()), AlgoConfig(beta=0.0, entropy_bonus=0.1))


def test_tokens_that_make_no_sense_are_refused() -> None:
    logprobs = some_logprobs()
    with pytest.raises(AssertionError, match="no gradient"):
        tokens_of(logprobs, old_logprobs=logprobs)
    with pytest.raises(AssertionError, match="one value a token"):
        tokens_of(logprobs, advantages=torch.ones(1))
