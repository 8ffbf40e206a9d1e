"""The GRPO loss: a weighted sum over flat completion tokens.

The weights are those of the whole update (algo/aggregation.py), so the sums of a loss and of its statistics over any
packs and ranks are those of the update. Shapes: K tokens, of any responses and groups. What goes by response (GSPO,
`algo.correction_level`) wants all tokens of each: a response is never split over packs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from museg_ray.algo.correction import importance_weights
from museg_ray.algo.kl import KL_ESTIMATORS, k3
from museg_ray.algo.surrogate import SURROGATES
from museg_ray.config.learning import AlgoConfig

WEIGHT = "weight"
"""Sum of the weights: the others divided by it are means over tokens, weighed as in the loss."""
KL = "kl"
"""k3 estimate of the KL to the reference in nats, whichever estimator the loss has; only with a reference."""
CLIPPED = "clipped"
"""Tokens whose policy gradient the clip cut; with CISPO, bounded."""
ENTROPY = "entropy"
"""Of the policy at the token, in nats; only where it is given."""
CORRECTION = "correction"
"""Importance weight after truncating or masking."""
CORRECTED = "corrected"
"""Tokens whose importance weight was truncated or masked."""


@dataclass(frozen=True, slots=True)
class LossTokens:
    """Tokens of the loss. Those that the policy may not emit are not among them: their log-probs mean nothing."""

    logprobs: Tensor
    """[K] under the policy, with gradient."""
    old_logprobs: Tensor
    """[K] under the policy that the rollout's first update starts from, detached: there they equal `logprobs`."""
    rollout_logprobs: Tensor
    """[K] as the rollout engine sampled them."""
    reference_logprobs: Tensor | None
    """[K] under the reference policy, detached; may be None when beta is 0."""
    entropies: Tensor | None
    """[K] nats, with gradient; may be None when the entropy bonus is 0."""
    advantages: Tensor
    """[K] each token's: that of its response."""
    weights: Tensor
    """[K] each token's share in the loss, see `token_weights`."""
    responses: Tensor
    """[K] int64, 0 to K - 1: of which response each token is."""

    def __post_init__(self) -> None:
        others = (self.old_logprobs, self.rollout_logprobs, self.reference_logprobs, self.entropies)
        for values in (*others, self.advantages, self.weights, self.responses):
            assert values is None or values.shape == self.logprobs.shape, f"{values.shape} is not one value a token"
        assert not self.old_logprobs.requires_grad, "the ratio to log-probs that follow the policy has no gradient"


def grpo_loss(tokens: LossTokens, algo: AlgoConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """sum of weight * (correction * surrogate + beta * KL - entropy_bonus * entropy) over the tokens.

    The correction multiplies the policy gradient alone: an advantage was earned by what the rollout engine sampled.
    KL and entropy hold the policy itself in place, also on tokens on which the engines disagree: these would drift
    freely if a mask took them out of the KL too.

    Without tokens (K = 0) the loss is 0 and still hangs on `logprobs`, so `backward` works.

    Args:
        tokens: some or all of an update's tokens.
        algo: the variants; `loss_mean` has gone into the weights, `advantage` and `scale_advantages` into the
            advantages.

    Returns:
        The scalar loss, and the detached statistics by their keys above, each a sum over tokens times their weights.

    Source: GRPO (arXiv 2402.03300, equations 3 and 4). With the defaults and one update a rollout it is the on-policy
    form of MUSEG's published code.
    """
    correction, was_corrected = importance_weights(tokens.old_logprobs, tokens.rollout_logprobs, tokens.responses, algo)
    # A token that the correction drops is taken as on policy: an infinite loss times 0 would be NaN.
    logprobs = torch.where(correction == 0, tokens.old_logprobs, tokens.logprobs)  # [K]
    surrogate, was_clipped = SURROGATES[algo.surrogate](
        logprobs, tokens.old_logprobs, tokens.advantages, tokens.responses, algo
    )
    losses = correction * surrogate + _regulariser(tokens, algo)  # [K]
    stats = {CORRECTION: correction, CORRECTED: was_corrected, CLIPPED: was_clipped} | _policy_stats(tokens)
    weighted = {name: (tokens.weights * values).sum() for name, values in stats.items()}
    return (tokens.weights * losses).sum(), {WEIGHT: tokens.weights.sum(), **weighted}


def _regulariser(tokens: LossTokens, algo: AlgoConfig) -> Tensor:
    """[K] beta * KL - entropy_bonus * entropy.

    The entropy bonus is that of PPO (arXiv 1707.06347, equation 9), after A3C (arXiv 1602.01783). A term of weight 0 is
    left out: 0 times an infinite KL would be NaN.
    """
    terms = torch.zeros_like(tokens.logprobs)
    if algo.beta:
        assert tokens.reference_logprobs is not None, f"beta {algo.beta} needs the reference policy's log-probs"
        terms = terms + algo.beta * KL_ESTIMATORS[algo.kl_estimator](tokens.reference_logprobs - tokens.logprobs)
    if algo.entropy_bonus:
        assert tokens.entropies is not None, f"entropy bonus {algo.entropy_bonus} needs the entropies"
        terms = terms - algo.entropy_bonus * tokens.entropies
    return terms


def _policy_stats(tokens: LossTokens) -> dict[str, Tensor]:
    """[K] each: what can be told of the policy from what is given."""
    stats = {}
    if tokens.reference_logprobs is not None:
        stats[KL] = k3(tokens.reference_logprobs - tokens.logprobs.detach())
    if tokens.entropies is not None:
        stats[ENTROPY] = tokens.entropies.detach()
    return stats
