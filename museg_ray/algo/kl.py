"""Estimates of KL(policy || reference) from the log-probs of single tokens that the policy sampled.

With d = reference - policy, the difference of a token's log-probs. As a term of the loss an estimator acts by its
gradient, which is another matter than its value: see each.

Source: Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html. What their gradients
are on average follows from E[grad log-prob] = 0; tests/algo/test_kl.py sums it up over a whole vocabulary.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """-d: unbiased, and negative for many tokens. Its gradient is 0 on average: in the loss it adds noise, no pull.

    Args:
        log_ratio: [K] d, reference minus policy log-probs.
    """
    return -log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """d^2 / 2: never negative, a little biased. Its gradient is on average that of KL(policy || reference).

    Args:
        log_ratio: [K] d, reference minus policy log-probs.
    """
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """exp(d) - 1 - d: never negative, unbiased. Its gradient is on average that of KL(reference || policy).

    Between near policies it is a small difference of large numbers in float32, hence expm1. Beyond d of about 88
    (a token that the reference finds e^88 times as likely) it is inf, and so is its gradient: that must be seen.

    Args:
        log_ratio: [K] d, reference minus policy log-probs.

    Source: GRPO (arXiv 2402.03300, equation 4).
    """
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"k1": k1, "k2": k2, "k3": k3})
"""`algo.kl_estimator` -> the estimator."""
