"""The policy-gradient term of the loss: the clipped surrogate, token by token.

Shapes: K tokens.
"""

import math

import torch
from torch import Tensor


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(logprobs - old_logprobs), for each token.

    With a dual clip c, a token of negative advantage loses at most -c A: its objective is max(min(...), c A). At the
    update that a rollout starts with, r is 1, nothing is clipped, and the gradient is that of -logprobs * A.

    That is -A times r held below 1 + clip_high where A > 0, and within 1 - clip_low and c where A < 0. So r is bounded
    as a logarithm, before exp: an r that overflows where the clip holds it gives its bound and no gradient (exp after
    the fact would have the gradient 0 * inf). Where nothing holds it, A < 0 and no dual clip, loss and gradient become
    inf: the update is lost, and that must be seen. A token of advantage 0 has loss 0, whatever its r.

    Args:
        logprobs: [K] under the policy, with gradient.
        old_logprobs: [K] under the policy that the rollout's first update starts from, detached.
        advantages: [K]
        clip_low: 0 to 1.
        clip_high: at least 0; above `clip_low` it is DAPO's clip-higher.
        dual_clip: c, above 1; 0 for none.

    Returns:
        [K] losses, and [K] bool: the tokens whose gradient the clip cut. A token exactly at a bound keeps its gradient.

    Source: PPO (arXiv 1707.06347, equation 7) as in GRPO (arXiv 2402.03300, equation 3); clip-higher: DAPO
    (arXiv 2503.14476, section 3.1); dual clip: arXiv 1912.09729.
    """
    least = torch.zeros_like(advantages).masked_fill(advantages <= 0, 1.0 - clip_low)  # [K]
    most = torch.full_like(advantages, dual_clip or math.inf).masked_fill(advantages >= 0, 1.0 + clip_high)  # [K]
    log_ratio = logprobs - old_logprobs  # [K]
    bounded = log_ratio.clamp(least.log(), most.log())  # [K]
    was_cut = (bounded != log_ratio) & (advantages != 0)  # [K]
    return -torch.exp(bounded) * advantages, was_cut
