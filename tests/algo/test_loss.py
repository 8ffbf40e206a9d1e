import math
from typing import Any

import pytest
import torch
from torch import Tensor

from museg_ray.algo.loss import grpo_loss


def loss_of(logprobs: Tensor, **changes: Any) -> tuple[Tensor, dict[str, float]]:
    """The loss of two responses, of 1 and 3 tokens, with advantages 1 and -2."""
    arguments: dict[str, Any] = {
        "logprobs": logprobs,
        "old_logprobs": logprobs.detach(),
        "reference_logprobs": None,
        "advantages": torch.tensor([1.0, -2.0, -2.0, -2.0]),
        "response_index": torch.tensor([0, 1, 1, 1]),
        "loss_mask": torch.ones(4, dtype=torch.bool),
        "num_responses": 2,
        "beta": 0.0,
    }
    return grpo_loss(**(arguments | changes))


def gradient(logprobs: Tensor, **changes: Any) -> list[float]:
    loss, _ = loss_of(logprobs, **changes)
    (result,) = torch.autograd.grad(loss, logprobs)
    return result.tolist()


def some_logprobs() -> Tensor:
    return torch.tensor([-0.5, -1.0, -2.0, -3.0], requires_grad=True)


def test_loss_by_hand() -> None:
    # On policy the ratio is 1: the mean over responses of minus their advantage, (-1 + 2) / 2.
    loss, stats = loss_of(some_logprobs())
    assert loss.item() == pytest.approx(0.5)
    assert stats == {}


def test_every_response_weighs_the_same_whatever_its_length() -> None:
    assert gradient(some_logprobs()) == pytest.approx([-1 / 2, 2 / 6, 2 / 6, 2 / 6])


def test_kl_by_hand() -> None:
    # k3 of d = ln 2: 2 - ln 2 - 1. Only the first response's one token differs from the reference.
    logprobs = some_logprobs()
    reference = logprobs.detach() + torch.tensor([math.log(2.0), 0.0, 0.0, 0.0])
    loss, stats = loss_of(logprobs, reference_logprobs=reference, beta=0.1)
    k3 = 1.0 - math.log(2.0)
    assert stats["kl"] == pytest.approx(k3 / 2)
    assert loss.item() == pytest.approx(0.5 + 0.1 * k3 / 2)


def test_kl_pulls_towards_the_reference() -> None:
    logprobs = some_logprobs()
    reference = logprobs.detach() + torch.tensor([1.0, 0.0, -1.0, 0.0])
    first, same, third, _ = gradient(
        logprobs, reference_logprobs=reference, beta=1.0, advantages=torch.zeros(4), response_index=torch.arange(4) // 2
    )
    assert first < 0.0 and same == 0.0 and third > 0.0  # a step against the gradient raises the first log-prob


def test_a_response_without_tokens_counts_with_zero() -> None:
    loss, _ = loss_of(some_logprobs(), num_responses=4)
    assert loss.item() == pytest.approx(0.25)


def test_a_masked_token_is_as_if_it_were_not_there() -> None:
    loss_mask = torch.tensor([True, True, False, True])
    logprobs = torch.tensor([-0.5, -1.0, -torch.inf, -3.0], requires_grad=True)
    reference = torch.tensor([-0.6, -1.5, -torch.inf, -2.0])
    changes = {"loss_mask": loss_mask, "reference_logprobs": reference, "beta": 0.5}
    loss, stats = loss_of(logprobs, **changes)
    kept = {"advantages": torch.tensor([1.0, -2.0, -2.0]), "response_index": torch.tensor([0, 1, 1])}
    expected_loss, expected_stats = loss_of(
        logprobs.detach()[loss_mask],
        **changes | kept | {"reference_logprobs": reference[loss_mask], "loss_mask": torch.ones(3, dtype=torch.bool)},
    )
    assert loss.item() == pytest.approx(expected_loss.item())
    assert stats == expected_stats
    assert gradient(logprobs, **changes)[2] == 0.0
    assert all(math.isfinite(part) for part in gradient(logprobs, **changes))


def test_a_group_with_every_token_masked_has_no_loss_and_no_gradient() -> None:
    logprobs = some_logprobs()
    nothing = torch.zeros(4, dtype=torch.bool)
    assert loss_of(logprobs, loss_mask=nothing)[0].item() == 0.0
    assert gradient(logprobs, loss_mask=nothing) == [0.0] * 4


def test_a_kl_weight_without_a_reference_is_refused() -> None:
    with pytest.raises(AssertionError, match="reference"):
        loss_of(some_logprobs(), beta=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_agree_with_a_loop_over_responses(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths, beta = [3, 0, 7, 1], 0.04
    num_tokens, index = sum(lengths), torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    logprobs, old, reference = -torch.rand(3, num_tokens, generator=generator, dtype=torch.float64)
    logprobs.requires_grad_()
    advantages = torch.randn(4, generator=generator, dtype=torch.float64)
    mask = torch.rand(num_tokens, generator=generator) < 0.8

    expected = torch.zeros((), dtype=torch.float64)
    for response in range(4):
        losses = []
        for token in range(num_tokens):
            if index[token] == response and mask[token]:
                d = reference[token] - logprobs[token]
                ratio = torch.exp(logprobs[token] - old[token])
                losses.append(-ratio * advantages[response] + beta * (torch.exp(d) - d - 1))
        if losses:
            expected = expected + sum(losses) / len(losses) / 4

    loss, _ = grpo_loss(
        logprobs=logprobs,
        old_logprobs=old,
        reference_logprobs=reference,
        advantages=advantages[index],
        response_index=index,
        loss_mask=mask,
        num_responses=4,
        beta=beta,
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs), torch.autograd.grad(expected, logprobs))
