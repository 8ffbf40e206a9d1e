"""What each token weighs in the loss of an update.

Weights depend on the whole update: they are made once, before its groups are packed into sequences and dealt to ranks.
The loss is then a plain sum over tokens, the same however they are packed and dealt.

Shapes: B groups in the update; G responses of a group, which may differ from group to group.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from museg_ray.types import FloatArray

Lengths = npt.NDArray[np.float64]
"""[G] tokens of each response in the loss."""


def sequence_weights(num_tokens: Sequence[Lengths], max_completion_tokens: int) -> list[Lengths]:
    """1 / (B G n): every response weighs the same, however long it is; one without tokens adds 0 to the mean.

    Source: GRPO (arXiv 2402.03300, equation 3).
    """
    return [1.0 / (len(num_tokens) * group.size * group.clip(min=1.0)) for group in num_tokens]


def even_token_weights(num_tokens: Sequence[Lengths], max_completion_tokens: int) -> list[Lengths]:
    """1 / (all tokens of the update): every token weighs the same, so a long response weighs more than a short one.

    Source: DAPO (arXiv 2503.14476, section 3.3).
    """
    total = sum(group.sum() for group in num_tokens)
    return [np.full_like(group, 1.0 / max(total, 1.0)) for group in num_tokens]


def constant_weights(num_tokens: Sequence[Lengths], max_completion_tokens: int) -> list[Lengths]:
    """1 / (B G max_completion_tokens): a token weighs the same whatever is long or short beside it.

    Source: Dr. GRPO (arXiv 2503.20783): no division by the response's own length.
    """
    return [np.full_like(group, 1.0 / (len(num_tokens) * group.size * max_completion_tokens)) for group in num_tokens]


LOSS_MEANS: Mapping[str, Callable[[Sequence[Lengths], int], list[Lengths]]] = MappingProxyType(
    {"sequence": sequence_weights, "token": even_token_weights, "constant": constant_weights}
)
"""`algo.loss_mean` -> what makes its weights."""


def token_weights(loss_mean: str, num_tokens: Sequence[npt.ArrayLike], max_completion_tokens: int) -> list[FloatArray]:
    """The weight of each token in the loss of an update, by group and response.

    Args:
        loss_mean: `sequence`, `token` or `constant`, see `AlgoConfig.loss_mean`.
        num_tokens: B times [G], the tokens of each response in the loss: those left out of it do not count.
        max_completion_tokens: the limit that `constant` divides by.

    Returns:
        B times [G] float32: what one token of response i weighs; 0 where it has none.
    """
    lengths = [np.asarray(group, dtype=np.float64) for group in num_tokens]
    assert all(group.ndim == 1 and group.size for group in lengths), "every group of an update has responses"
    weights = LOSS_MEANS[loss_mean](lengths, max_completion_tokens)
    return [np.where(group > 0, weight, 0.0).astype(np.float32) for group, weight in zip(lengths, weights, strict=True)]
