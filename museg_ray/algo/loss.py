"""The GRPO loss on the flat completion tokens of one group.

Shapes: N completion tokens of the group, all responses one after another; G responses.
"""

import torch
from torch import Tensor


def _mean_per_response(values: Tensor, response_index: Tensor, num_responses: int) -> Tensor:
    """Mean over each response's tokens, then over all responses; a response without tokens counts with 0.

    Every response weighs the same, however long it is (per-sequence mean, as in the paper).
    """
    sums = values.new_zeros(num_responses).index_add(0, response_index, values)  # [G]
    counts = torch.bincount(response_index, minlength=num_responses)  # [G]
    return (sums / counts.clamp(min=1)).mean()


def grpo_loss(
    *,
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    response_index: Tensor,
    loss_mask: Tensor,
    num_responses: int,
    beta: float,
) -> tuple[Tensor, dict[str, float]]:
    """GRPO loss of one group: -ratio * advantage + beta * KL, per-response token mean, mean over the responses.

    ratio = exp(logprobs - old_logprobs) carries the policy gradient. Each rollout is used for one update, so
    `old_logprobs` is `logprobs.detach()`, the ratio is 1 and there is nothing to clip. KL is the k3 estimate
    exp(d) - d - 1 with d = reference - policy: never negative, and unbiased for samples of the policy.

    Args:
        logprobs: [N] log-probs of the completion tokens under the policy, with gradient.
        old_logprobs: [N] the same tokens under the policy that the update starts from, detached.
        reference_logprobs: [N] under the frozen reference policy, or None when beta is 0.
        advantages: [N] each token's advantage: that of its response.
        response_index: [N] int64, the response that a token belongs to, 0 to G - 1.
        loss_mask: [N] bool; False leaves a token out, as if it were not part of its response: a token that the
            policy may not emit, whose log-prob (-inf, or next to it) means nothing.
        num_responses: G, responses without any token included.
        beta: weight of the KL term.

    Returns:
        The scalar loss, and {"kl": mean KL in nats} (empty without a reference).

    Source: GRPO (arXiv 2402.03300, equations 3 and 4), in the on-policy form of MUSEG's published code.
    """
    assert reference_logprobs is not None or beta == 0.0, f"beta {beta} needs the reference policy's log-probs"
    kept = loss_mask.nonzero().squeeze(1)  # [K] indices: dropped tokens leave the graph; 0 * inf would be NaN
    policy, index = logprobs[kept], response_index[kept]
    ratio = torch.exp(policy - old_logprobs[kept])
    per_token = -ratio * advantages[kept]  # [K]
    if reference_logprobs is None:
        return _mean_per_response(per_token, index, num_responses), {}
    log_ratio = reference_logprobs[kept] - policy
    kl = torch.exp(log_ratio) - log_ratio - 1.0  # [K]
    loss = _mean_per_response(per_token + beta * kl, index, num_responses)
    return loss, {"kl": _mean_per_response(kl.detach(), index, num_responses).item()}
