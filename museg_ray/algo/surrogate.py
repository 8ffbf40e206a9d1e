"""The policy-gradient term of the loss, token by token.

Shapes: K tokens; `responses` [K] says of which response each is, see algo/responses.py.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from museg_ray.algo.responses import response_means
from museg_ray.config.learning import AlgoConfig


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, responses: Tensor, algo: AlgoConfig
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
        responses: [K], not looked at.
        algo: its `clip_low`, 0 to 1, `clip_high`, at least 0 (above `clip_low` it is DAPO's clip-higher), and
            `dual_clip`: c, above 1; 0 for none.

    Returns:
        [K] losses, and [K] bool: the tokens whose gradient the clip cut. A token exactly at a bound keeps its gradient.

    Source: PPO (arXiv 1707.06347, equation 7) as in GRPO (arXiv 2402.03300, equation 3); clip-higher: DAPO
    (arXiv 2503.14476, section 3.1); dual clip: arXiv 1912.09729.
    """
    least = torch.zeros_like(advantages).masked_fill(advantages <= 0, 1.0 - algo.clip_low)  # [K]
    most = torch.full_like(advantages, algo.dual_clip or math.inf).masked_fill(advantages >= 0, 1.0 + algo.clip_high)
    log_ratio = logprobs - old_logprobs  # [K]
    bounded = log_ratio.clamp(least.log(), most.log())  # [K]
    was_cut = (bounded != log_ratio) & (advantages != 0)  # [K]
    return -torch.exp(bounded) * advantages, was_cut


def gspo_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, responses: Tensor, algo: AlgoConfig
) -> tuple[Tensor, Tensor]:
    """-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A) at each token, with s = exp(mean of logprobs - old_logprobs).

    The mean is over the tokens of the response, so s is the ratio of its likelihoods under the two policies to the
    power of 1 / its length, and the clip takes or leaves a response as a whole. All its tokens have its loss: weighed
    by 1 / (B G n), as `algo.loss_mean=sequence` does, they add up to the paper's mean over responses.

    Args, bounds and overflow as in `clipped_surrogate`; all tokens of a response must be given, and have one advantage.

    Returns:
        [K] losses, and [K] bool: the tokens of the responses whose gradient the clip cut.

    Source: GSPO (arXiv 2507.18071, equations 5 and 7), which clips s at 1 - 3e-4 and 1 + 4e-4.
    """
    log_ratio = response_means(logprobs - old_logprobs, responses)  # [K]
    return clipped_surrogate(log_ratio, torch.zeros_like(log_ratio), advantages, responses, algo)


def cispo_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, responses: Tensor, algo: AlgoConfig
) -> tuple[Tensor, Tensor]:
    """-clip(r, 1 - clip_low, 1 + clip_high) A logprobs, the clipped r = exp(logprobs - old_logprobs) being a constant.

    So no token loses its gradient to the clip, as rare ones do that the first updates have made likelier: only its
    weight is bounded. The loss acts by its gradient, -clip(r) A at each log-prob; its value means little.

    Args as in `clipped_surrogate`; `responses` and `dual_clip` are not looked at: r is bounded for either sign of A.

    Returns:
        [K] losses, and [K] bool: the tokens whose weight was clipped.

    Source: CISPO in MiniMax-M1 (arXiv 2506.13585, equations 4 and 5), which has no lower bound: `clip_low` 1.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()  # [K]; inf is beyond the bound, and has no gradient to spoil
    bounded = ratio.clamp(1.0 - algo.clip_low, 1.0 + algo.clip_high)  # [K]
    return -bounded * advantages * logprobs, (bounded != ratio) & (advantages != 0)


SURROGATES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor, AlgoConfig], tuple[Tensor, Tensor]]] = (
    MappingProxyType({"ppo": clipped_surrogate, "gspo": gspo_surrogate, "cispo": cispo_surrogate})
)
"""`algo.surrogate` -> the surrogate."""
