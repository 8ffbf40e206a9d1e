"""Multimodal rotary positions (M-RoPE), by the rules of the models' original code and of vLLM.

transformers 5.19 places the text after a video of Qwen2.5-VL differently (`get_rope_index`: start + max(h, w) / merge,
where the video's temporal axis is usually the longest). Its log-probs then differ from those the engine sampled with,
by 1e-2, silently. So positions are computed here and always passed to the model explicitly.
"""

from collections.abc import Sequence
from itertools import groupby

import torch

from museg_ray.model.qwen_vl import VisionSpec


def seconds_per_grid(sample_fps: float, spec: VisionSpec, dtype: torch.dtype) -> float:
    """Seconds between neighbouring steps of a video's temporal axis, rounded to `dtype`.

    vLLM keeps this value in the model's dtype among the other inputs (`_postprocess_output` in
    vllm/multimodal/processing/context.py), so the rounding belongs to the rule: unrounded, the positions of a
    bfloat16 engine and of the learner drift apart over a long video.
    """
    return torch.tensor(spec.temporal_patch_size / sample_fps, dtype=torch.float32).to(dtype).item()


def prompt_positions(
    prompt_ids: Sequence[int], grid: tuple[int, int, int], grid_interval_s: float, spec: VisionSpec
) -> torch.Tensor:
    """Positions of a prompt that holds one video: temporal, height and width rows.

    Text counts up in all three rows, and goes on from the largest position + 1 after a block of video tokens.
    Qwen2.5-VL: the video is one block, and its token (t, h, w) has (floor(t * interval * tokens_per_second), h, w)
    added to the position where it starts. Qwen3-VL: each step t is a block of its own between its written times, and
    its token (h, w) has (0, h, w) added.

    Args:
        prompt_ids: [P], the video's placeholders expanded.
        grid: patches (t, h, w) of the video.
        grid_interval_s: from `seconds_per_grid`. Positions of Qwen3-VL do not depend on it.

    Returns:
        [3, P] int64.
    """
    is_video = [token == spec.video_token_id for token in prompt_ids]  # [P]
    assert sum(is_video) == spec.num_video_tokens(grid), f"{sum(is_video)} placeholders for a video of grid {grid}"
    blocks = iter(_video_blocks(grid, grid_interval_s, spec))
    parts, start = [], 0
    for run_is_video, run in groupby(is_video):
        length = len(list(run))
        part = next(blocks) if run_is_video else torch.arange(length).expand(3, -1)
        assert part.shape[1] == length, "the placeholders of a block must be contiguous"
        parts.append(part + start)
        start = int(parts[-1].max()) + 1
    return torch.cat(parts, dim=1)


def _video_blocks(grid: tuple[int, int, int], grid_interval_s: float, spec: VisionSpec) -> list[torch.Tensor]:
    """[3, tokens] positions of each block of video tokens from its own start."""
    t, h, w = grid[0], grid[1] // spec.merge_size, grid[2] // spec.merge_size
    if spec.tokens_per_second is None:
        return [_block(torch.zeros(1, dtype=torch.long), h, w)] * t
    # vLLM multiplies in float64 and truncates: any other order of rounding shifts some steps by one.
    steps = (torch.arange(t, dtype=torch.float64) * (grid_interval_s * spec.tokens_per_second)).long()
    return [_block(steps, h, w)]


def _block(steps: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """[3, t * h * w] of a block with temporal positions `steps` [t]."""
    axes = torch.meshgrid(steps, torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def completion_positions(positions: torch.Tensor, length: int) -> torch.Tensor:
    """[3, length] positions of a completion right after a prompt with `positions` [3, P]."""
    return (torch.arange(length) + int(positions.max()) + 1).expand(3, -1)
