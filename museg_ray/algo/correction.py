"""Off-policy correction: tokens were sampled by the rollout engine, whose probabilities are not quite the learner's.

The engine computes with other kernels, or with older weights. w = exp(learner - rollout log-prob) weighs a token as if
the learner's policy had sampled it, and a few tokens with a large w would rule the update: so w is bounded.

Invariant: however old the weights that sampled a token are, and at every level, 0 <= weight <= `algo.correction_limit`.
w itself strays with age, since each update adds to the difference; the limit stays. (`train.max_staleness` bounds the
age.) The rollout log-prob of a token is that of the weights that sampled it, also where its response went on under
newer ones: so w needs no other knowledge of versions.

Shapes: K tokens; `responses` [K] says of which response each is, see algo/responses.py.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from museg_ray.algo.responses import response_means, response_sums
from museg_ray.config.learning import AlgoConfig


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


def per_token(log_ratio: Tensor, responses: Tensor) -> Tensor:
    """Each token by itself. Biased, since the tokens before it were not sampled by the learner either; least variance.

    Source: those of `truncated` and `masked`.
    """
    return log_ratio


LEVELS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"token": per_token, "sequence": response_sums, "geometric": response_means}
)
"""`algo.correction_level` -> what makes log w at each token from the tokens' log-ratios.

`sequence`: w is the product over the response's tokens, the importance weight of the whole response. Without a limit it
is unbiased for a reward of the whole response, and its variance grows exponentially with length. `geometric`: w is the
geometric mean, the length-th root of that product: biased, and comparable between lengths.

Source: Liu, Li et al., "When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference Mismatch"
(2025), https://richardli.xyz/rl-collapse: truncated and masked importance sampling of sequences, and masks by the
geometric mean, as in DeepSeek-V3.2 (arXiv 2512.02556).
"""


def importance_weights(
    old_logprobs: Tensor, rollout_logprobs: Tensor, responses: Tensor, algo: AlgoConfig
) -> tuple[Tensor, Tensor]:
    """Each token's importance weight, a constant for the gradient. A w that overflows is beyond every limit.

    Args:
        old_logprobs: [K] under the learner's policy that the rollout's first update starts from.
        rollout_logprobs: [K] as the engine sampled them.
        responses: [K]
        algo: its `correction`, `correction_level` and `correction_limit`. Unless the level is `token`, all tokens of a
            response must be given, and have one w.

    Returns:
        [K] weights, and [K] bool: the tokens that were truncated or masked.
    """
    log_ratio = (old_logprobs - rollout_logprobs).detach()  # [K]
    ratio = LEVELS[algo.correction_level](log_ratio, responses).exp()  # [K]
    return CORRECTIONS[algo.correction](ratio, algo.correction_limit)
