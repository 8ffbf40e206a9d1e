"""One group as one sequence: `[prompt | c_1 | ... | c_G]`, so that video and prompt are computed once a group.

Completion i sees the prompt and itself, and its positions start right after the prompt: log-probs and gradients are
those of G separate rows (the idea, on text: Prefix Grouper, arXiv 2506.05433).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from museg_ray.model.positions import completion_positions


@dataclass(frozen=True, slots=True)
class Pack:
    """P prompt tokens, N completion tokens of all G responses together, L = P + N."""

    num_prompt_tokens: int
    num_responses: int
    input_ids: torch.Tensor  # [L]
    position_ids: torch.Tensor  # [3, L]
    attention_mask: torch.Tensor  # [L, L] bool, row attends to column
    logit_rows: torch.Tensor  # [N] rows of the sequence whose logits predict each completion token
    targets: torch.Tensor  # [N] the completion tokens
    response_index: torch.Tensor  # [N] the response each belongs to, 0 .. G - 1

    def to(self, device: torch.device) -> "Pack":
        """The same pack with its tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in _TENSOR_FIELDS}
        return replace(self, **moved)


_TENSOR_FIELDS = ("input_ids", "position_ids", "attention_mask", "logit_rows", "targets", "response_index")


def pack_group(prompt_ids: Sequence[int], positions: torch.Tensor, completions: Sequence[Sequence[int]]) -> Pack:
    """Pack the completions of one prompt.

    Args:
        prompt_ids: [P], video placeholders expanded.
        positions: [3, P] from `prompt_positions`.
        completions: G sequences of token ids; any of them may be empty, and may hold any id of the vocabulary.
    """
    num_prompt = len(prompt_ids)
    assert positions.shape == (3, num_prompt), f"positions {tuple(positions.shape)} for {num_prompt} prompt tokens"
    lengths = torch.tensor([len(completion) for completion in completions])  # [G]
    targets = torch.tensor([token for completion in completions for token in completion], dtype=torch.long)
    response_index = torch.repeat_interleave(torch.arange(len(completions)), lengths)
    return Pack(
        num_prompt_tokens=num_prompt,
        num_responses=len(completions),
        input_ids=torch.cat([torch.tensor(prompt_ids, dtype=torch.long), targets]),
        position_ids=torch.cat([positions, *(completion_positions(positions, len(c)) for c in completions)], dim=1),
        attention_mask=_attention_mask(num_prompt, response_index),
        logit_rows=_logit_rows(num_prompt, response_index),
        targets=targets,
        response_index=response_index,
    )


def _attention_mask(num_prompt: int, response_index: torch.Tensor) -> torch.Tensor:
    """[L, L]: causal, and across completions blocked (else later responses would read earlier ones)."""
    prompt = torch.full((num_prompt,), -1)
    owner = torch.cat([prompt, response_index])  # [L], -1 for the prompt
    visible = (owner[None] == -1) | (owner[None] == owner[:, None])
    return visible & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()


def _logit_rows(num_prompt: int, response_index: torch.Tensor) -> torch.Tensor:
    """[N]: the row before each token; for a completion's first token that is the prompt's last row."""
    rows = torch.arange(len(response_index)) + num_prompt - 1
    is_first = torch.ones(len(response_index), dtype=torch.bool)
    is_first[1:] = response_index[1:] != response_index[:-1]
    return torch.where(is_first, num_prompt - 1, rows)
