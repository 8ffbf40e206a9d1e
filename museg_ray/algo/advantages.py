"""Group-relative advantages: how much better a response did than the others to the same query."""

import numpy as np

from museg_ray.types import FloatArray

STD_EPSILON = 1e-4
"""Added to the standard deviation, as in the published code: a group of almost equal rewards is not blown up."""


def group_advantages(totals: FloatArray, scale: bool) -> FloatArray:
    """Advantages of one group's responses: (r - mean) / (std + 1e-4), std with G - 1 in the denominator.

    A group whose rewards are all equal gives exactly 0 (rounding of the mean would leave noise); every advantage is
    finite for finite rewards.

    Args:
        totals: [G] total rewards, G >= 2.
        scale: False leaves out the division by the standard deviation.

    Returns:
        [G] float32 advantages.

    Source: GRPO (arXiv 2402.03300, section 4.1.2), epsilon and unbiased deviation as in MUSEG's published code.
    """
    rewards = np.asarray(totals, dtype=np.float64)  # [G]
    assert rewards.ndim == 1 and rewards.size >= 2, f"advantages need a group of at least 2, got {rewards.shape}"
    if np.all(rewards == rewards[0]):
        return np.zeros(rewards.shape, dtype=np.float32)
    advantages = rewards - rewards.mean()
    if scale:
        advantages /= rewards.std(ddof=1) + STD_EPSILON
    return np.asarray(advantages, dtype=np.float32)


def rloo_advantages(totals: FloatArray) -> FloatArray:
    """Leave-one-out advantages (RLOO) of one group's responses: r minus the mean of the others.

    The others do not depend on the response, so as its baseline they leave the policy gradient unbiased; the mean over
    all does depend on it. Yet the two differ by a factor alone: r_i - (S - r_i) / (G - 1) = (r_i - S / G) G / (G - 1),
    S being the sum. So they sum to 0 over the group, and a group whose rewards are all equal gives exactly 0.

    Args:
        totals: [G] total rewards, G >= 2.

    Returns:
        [G] float32 advantages.

    Source: arXiv 2402.14740, section 2.2; Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get a baseline for
    free!" (2019).
    """
    return group_advantages(totals, scale=False) * np.float32(len(totals) / (len(totals) - 1))
