"""The ways of `museg bench video`, each for a process of its own: (video, warm-up video, folder of the store)."""

import importlib
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from museg_ray.bench.apart import Facts, status_mib
from museg_ray.config.schema import VideoConfig
from museg_ray.types import ByteArray

VISUAL_TOKEN_PIXELS = 28 * 28
RENDERED = "frames.npy"
"""Where `qwen_vl_utils` leaves its frames [T, H, W, 3] for a comparison."""


def into_store(video: str, warm_up: str, store_dir: str, decoder: str = "pyav") -> Facts:
    import torch

    from museg_ray.video.prepare import Preparer

    torch.set_num_threads(1)  # as in a reader process
    preparer = Preparer(VideoConfig(store_dir=store_dir, decoder=decoder))
    preparer.prepare(warm_up)
    start_s = time.perf_counter()
    preparer.prepare(video)
    seconds = time.perf_counter() - start_s
    facts = _frames_facts(preparer.clip(video).frames)
    return facts | {"seconds": seconds, "tokens_seen": facts["tokens"]}


def through_decord(video: str, warm_up: str, store_dir: str) -> Facts:
    return into_store(video, warm_up, store_dir, decoder="decord")


def touch(video: str, warm_up: str, store_dir: str) -> Facts:
    """Out of the store again. The first look of a new process checks the entry; later ones do not."""
    from museg_ray.video.prepare import Preparer, read_clip

    config = VideoConfig(store_dir=store_dir)
    preparer = Preparer(config)
    preparer.clip(warm_up)
    seconds = []
    for _ in range(6):
        start_s = time.perf_counter()
        preparer.clip(video)
        seconds.append(time.perf_counter() - start_s)
    theirs = np.load(Path(store_dir) / RENDERED)
    ours = read_clip(video, replace(config, sampling="qwen_vl_utils")).frames  # taken at its times
    grey_levels = float(np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).mean())
    return {"first_s": seconds[0], "later_s": float(np.median(seconds[1:])), "grey_levels": grey_levels}


def qwen_vl_utils(video: str, warm_up: str, store_dir: str) -> Facts:
    """As MUSEG's published code calls it, with decord; then the stock processor on the result, as there."""
    os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
    vision_process = importlib.import_module("qwen_vl_utils.vision_process")  # a package for development alone
    config = VideoConfig()
    settings = {"min_pixels": config.min_pixels, "total_pixels": config.total_pixels, "max_frames": config.max_frames}
    vision_process.fetch_video({"video": warm_up, "fps": config.fps, **settings})
    start_s = time.perf_counter()
    frames = vision_process.fetch_video({"video": video, "fps": config.fps, **settings})
    facts = {"seconds": time.perf_counter() - start_s, "peak_mib": status_mib("VmHWM")}
    thwc = frames.permute(0, 2, 3, 1).round().byte().numpy()
    np.save(Path(store_dir) / RENDERED, thwc)
    return _frames_facts(thwc) | facts | {"tokens_seen": _stock_tokens(thwc)}


def _frames_facts(frames: ByteArray) -> Facts:
    num_frames, height, width, _ = frames.shape
    tokens = num_frames // 2 * height * width / VISUAL_TOKEN_PIXELS
    return {"tokens": tokens, "peak_mib": status_mib("VmHWM")}


def _stock_tokens(frames: ByteArray) -> float:
    """Visual tokens where the stock processor may resize once more, as it does by default."""
    import torch
    from transformers import Qwen2VLVideoProcessor

    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    grid = Qwen2VLVideoProcessor()(videos=[pixels], do_sample_frames=False, return_tensors="pt")["video_grid_thw"][0]
    return float(grid.prod() / 4)
