"""Multimodal rotary positions (M-RoPE), by the rule of Qwen2.5-VL's original code and of vLLM.

transformers 5.19 places the text after a video differently (`get_rope_index`: start + max(h, w) / merge, where the
video's temporal axis is usually the longest). Its log-probs then differ from those the engine sampled with, by 1e-2,
silently. So positions are computed here and always passed to the model explicitly.
"""

from collections.abc import Sequence

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

    Text counts up in all three rows. Video token (t, h, w) has (floor(t * interval * tokens_per_second), h, w) added
    to the position where the video starts, and text goes on from the largest position + 1.

    Args:
        prompt_ids: [P], the video's placeholders expanded.
        grid: patches (t, h, w) of the video.
        grid_interval_s: from `seconds_per_grid`.

    Returns:
        [3, P] int64.
    """
    ids = torch.tensor(prompt_ids)
    is_video = ids == spec.video_token_id  # [P]
    num_video = int(is_video.sum())
    assert num_video == spec.num_video_tokens(grid), f"{num_video} placeholders for a video of grid {grid}"
    start = int(is_video.int().argmax())
    assert bool(is_video[start : start + num_video].all()), "the video's placeholders must be contiguous"
    video = _video_positions(grid, grid_interval_s, spec) + start  # [3, V]
    num_tail = len(ids) - start - num_video
    tail = torch.arange(num_tail) + int(video.max()) + 1
    return torch.cat([torch.arange(start).expand(3, -1), video, tail.expand(3, -1)], dim=1)


def _video_positions(grid: tuple[int, int, int], grid_interval_s: float, spec: VisionSpec) -> torch.Tensor:
    """[3, V] positions of the video's tokens from its own start."""
    t, h, w = grid[0], grid[1] // spec.merge_size, grid[2] // spec.merge_size
    # vLLM multiplies in float64 and truncates: any other order of rounding shifts some steps by one.
    steps = (torch.arange(t, dtype=torch.float64) * (grid_interval_s * spec.tokens_per_second)).long()
    axes = torch.meshgrid(steps, torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])


def completion_positions(positions: torch.Tensor, length: int) -> torch.Tensor:
    """[3, length] positions of a completion right after a prompt with `positions` [3, P]."""
    return (torch.arange(length) + int(positions.max()) + 1).expand(3, -1)
