"""Patches equal those of the stock video processor."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoVideoProcessor

from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.qwen_vl import load_vision_spec


@pytest.mark.parametrize(("num_frames", "height", "width"), [(4, 2, 2), (24, 3, 2), (2, 1, 5)])
def test_patches_equal_those_of_the_stock_video_processor(
    family_dir: Path, num_frames: int, height: int, width: int
) -> None:
    spec = load_vision_spec(family_dir)
    size = (num_frames, height * spec.size_multiple, width * spec.size_multiple, 3)
    frames = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    stock = AutoVideoProcessor.from_pretrained(family_dir)(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
    )
    torch.testing.assert_close(patchify(frames, spec), stock["pixel_values_videos"], rtol=0, atol=1e-6)
    assert video_grid(frames, spec) == tuple(stock["video_grid_thw"][0].tolist())


def test_read_only_frames_are_accepted_and_unchanged(tiny_model_dir: Path) -> None:
    frames = np.full((2, 28, 28, 3), 7, dtype=np.uint8)
    frames.flags.writeable = False
    patchify(frames, load_vision_spec(tiny_model_dir))
    assert bool((frames == 7).all())
