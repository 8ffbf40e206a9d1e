import math

import pytest
import torch

from museg_ray.algo.kl import KL_ESTIMATORS, k1, k2, k3

LOG_RATIOS = [0.0, math.log(2.0), math.log(0.5), -1.5]


def test_estimates_by_hand() -> None:
    d = torch.tensor(LOG_RATIOS, dtype=torch.float64)
    ln2 = math.log(2.0)
    assert k1(d).tolist() == pytest.approx([0.0, -ln2, ln2, 1.5])
    assert k2(d).tolist() == pytest.approx([0.0, ln2**2 / 2, ln2**2 / 2, 1.5**2 / 2])
    assert k3(d).tolist() == pytest.approx([0.0, 2 - ln2 - 1, 0.5 + ln2 - 1, math.exp(-1.5) + 1.5 - 1])


def test_k3_between_near_policies_is_no_rounding_noise() -> None:
    # exp(d) - d - 1 in float32 is off by up to 1e-7 here, a fifth of the value and more.
    d = torch.tensor([1e-3, -1e-3, 3e-4])
    assert k3(d).tolist() == pytest.approx([0.5e-6, 0.5e-6, 0.45e-7], rel=2e-3)


def test_k3_overflows_where_it_must_be_seen_and_nowhere_else() -> None:
    d = torch.tensor([100.0, -1e4, 80.0], requires_grad=True)
    value = k3(d)
    assert value.isfinite().tolist() == [False, True, True]
    assert value[1].item() == pytest.approx(9999.0)
    assert torch.autograd.grad(value.sum(), d)[0].isnan().tolist() == [False] * 3


@pytest.fixture
def policy_and_reference() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy with gradient and log-probs of a reference, over a vocabulary of 5."""
    generator = torch.Generator().manual_seed(3)
    logits, reference = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), reference.log_softmax(0)


def exact_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


@pytest.mark.parametrize(("name", "is_unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_the_mean_over_the_policys_tokens_is_the_kl_where_the_docs_say_so(
    name: str, is_unbiased: bool, policy_and_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, reference = policy_and_reference
    log_p = logits.detach().log_softmax(0)
    mean = (log_p.exp() * KL_ESTIMATORS[name](reference - log_p)).sum()
    assert (mean.item() == pytest.approx(exact_kl(log_p, reference).item())) == is_unbiased


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_the_mean_gradient_over_the_policys_tokens_is_what_the_docs_say(
    name: str, policy_and_reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, reference = policy_and_reference
    log_p = logits.log_softmax(0)
    loss = (log_p.exp().detach() * KL_ESTIMATORS[name](reference - log_p)).sum()  # tokens are samples, not variables
    expected = {"k1": 0.0 * log_p.sum(), "k2": exact_kl(log_p, reference), "k3": exact_kl(reference, log_p)}[name]
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], atol=1e-12, rtol=1e-9)
    assert name == "k1" or gradient.abs().max() > 1e-2
