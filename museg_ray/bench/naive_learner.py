"""The naive learner pass: each response as a row of its own, as the published trainer does it."""

from typing import Any

import torch

from museg_ray.bench.learner_case import Group
from museg_ray.model.positions import completion_positions


def row_logprobs(model: Any, group: Group) -> torch.Tensor:
    """[N] log-probs of all completions: patches and prompt repeated for each, rows padded to one length, logits over
    the whole rows, of which those of the prompt are cut off; then log-softmax row by row.

    Positions are ours: those of transformers 5.19 are wrong for text after a video, and the ways would not compare.

    Source: `_get_per_token_logps` of MUSEG's published trainer.py.
    """
    device, num_prompt, count = group.patches.device, len(group.row.prompt_ids), len(group.row.completions)
    ids, mask = _padded(group)
    longest = ids.shape[1] - num_prompt
    positions = torch.cat([group.row.positions, completion_positions(group.row.positions, longest)], dim=1)  # [3, L]
    logits = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions[:, None].expand(-1, count, -1).to(device),
        pixel_values_videos=group.patches.repeat(count, 1),
        video_grid_thw=torch.tensor([group.grid] * count, device=device),
        use_cache=False,
    ).logits  # [G, L, V]
    logits = logits[:, num_prompt - 1 : -1]  # [G, longest, V]
    targets = ids[:, num_prompt:].to(device)
    rows = zip(logits, targets, group.row.completions, strict=True)
    return torch.cat([_token_logprobs(scores, tokens)[: len(completion)] for scores, tokens, completion in rows])


def _padded(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """[G, L] ids, zeros after each row's end; and 1 where there is a token."""
    rows = [torch.tensor([*group.row.prompt_ids, *completion]) for completion in group.row.completions]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def _token_logprobs(scores: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[tokens] from scores [tokens, V], in float32 as under autocast."""
    return scores.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
