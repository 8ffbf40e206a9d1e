"""Off-policy correction: tokens were sampled by the rollout engine, whose probabilities are not quite the learner's.

The engine computes with other kernels, or with older weights. w = exp(learner - rollout log-prob) weighs a token as if
the learner's policy had sampled it, and a few tokens with a large w would rule the update: so w is bounded.

Shapes: K tokens.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor


def uncorrected(ratio: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """1 for every token: rollout and learner are taken for the same policy, as in GRPO (arXiv 2402.03300)."""
    return torch.ones_like(ratio), torch.zeros_like(ratio, dtype=torch.bool)


def truncated(ratio: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """min(w, limit): truncated importance sampling.

    Source: V-trace in IMPALA (arXiv 1802.01561, section 4.1); between engines: Yao et al., "Your Efficient RL Framework
    Secretly Brings You Off-Policy RL Training" (2025), https://fengyao.notion.site/off-policy-rl.
    """
    return ratio.clamp(max=limit), ratio > limit


def masked(ratio: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """w within 1 / limit and limit, both included, else 0: tokens on which the two disagree teach nothing.

    Source: IcePop, in the report on Ring-1T (arXiv 2510.18855), with bounds that are one another's inverse.
    """
    is_outside = (ratio < 1.0 / limit) | (ratio > limit)
    return ratio.masked_fill(is_outside, 0.0), is_outside


CORRECTIONS: Mapping[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = MappingProxyType(
    {"none": uncorrected, "truncate": truncated, "mask": masked}
)
"""`algo.correction` -> the correction."""


def importance_weights(
    correction: str, old_logprobs: Tensor, rollout_logprobs: Tensor, limit: float
) -> tuple[Tensor, Tensor]:
    """Each token's importance weight, a constant for the gradient. A w that overflows is beyond every limit.

    Args:
        correction: `none`, `truncate` or `mask`, see `AlgoConfig.correction`.
        old_logprobs: [K] under the learner's policy that the rollout's first update starts from.
        rollout_logprobs: [K] as the engine sampled them.
        limit: at least 1.

    Returns:
        [K] weights, and [K] bool: the tokens that were truncated or masked.
    """
    ratio = torch.exp(old_logprobs - rollout_logprobs).detach()  # [K]
    return CORRECTIONS[correction](ratio, limit)
