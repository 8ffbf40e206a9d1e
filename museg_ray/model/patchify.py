"""Prepared frames to the vision tower's input: what the stock video processor computes after resizing."""

import torch

from museg_ray.model.qwen_vl import VisionSpec
from museg_ray.types import ByteArray


def video_grid(frames: ByteArray, spec: VisionSpec) -> tuple[int, int, int]:
    """Patches (t, h, w) of frames [T, H, W, 3]."""
    num_frames, height, width, _ = frames.shape
    side = spec.size_multiple
    assert num_frames % spec.temporal_patch_size == 0, f"{num_frames} frames do not fill whole temporal patches"
    assert height % side == 0 and width % side == 0, f"{height} x {width} pixels are not multiples of {side}"
    return num_frames // spec.temporal_patch_size, height // spec.patch_size, width // spec.patch_size


def patchify(frames: ByteArray, spec: VisionSpec, device: torch.device | str = "cpu") -> torch.Tensor:
    """Normalised patches of a video, in the order of the stock video processors: patches that merge into one token are
    neighbours.

    Args:
        frames: [T, H, W, 3] uint8 RGB at their final size.
        device: where to compute. Bytes go there, a quarter of what the patches take.

    Returns:
        [t * h * w, 3 * temporal_patch_size * patch_size ** 2] float32, on the device.
    """
    t, h, w = video_grid(frames, spec)
    patch, merge, depth = spec.patch_size, spec.merge_size, spec.temporal_patch_size
    # Mean and deviation on the 0 .. 255 scale, as the stock processor fuses rescaling and normalising.
    mean, std = (torch.tensor(values, device=device) * 255 for values in (spec.image_mean, spec.image_std))
    # A copy, since frames from the store are read-only and torch wants to own what it wraps.
    pixels = (torch.tensor(frames, device=device).float() - mean) / std  # [T, H, W, C]
    pixels = pixels.permute(0, 3, 1, 2)  # [T, C, H, W]
    blocks = pixels.reshape(t, depth, 3, h // merge, merge, patch, w // merge, merge, patch)
    # [t, h/merge, w/merge, merge, merge | C, depth, patch, patch]
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, 3 * depth * patch * patch)
