"""One measurement of `museg bench video`, in a process of its own so that its peak memory is its alone.

    python -m museg_ray.bench.video_way WAY VIDEO WARM_UP STORE

prints one JSON object. WAY is `store` (into the frame store), `decord` (the same through decord), `touch` (out of the
store again) or `qwen_vl_utils`.
"""

import importlib
import json
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from museg_ray.config.schema import VideoConfig
from museg_ray.types import ByteArray

VISUAL_TOKEN_PIXELS = 28 * 28
MIB = 1024**2
RENDERED = "frames.npy"
"""Where `qwen_vl_utils` leaves its frames [T, H, W, 3] for a comparison."""


def prepare_into_store(video: str, warm_up: str, config: VideoConfig) -> dict[str, float]:
    import torch

    from museg_ray.video.prepare import Preparer

    torch.set_num_threads(1)  # as in a reader process
    preparer = Preparer(config)
    preparer.prepare(warm_up)
    start_s = time.perf_counter()
    preparer.prepare(video)
    seconds = time.perf_counter() - start_s
    return {"seconds": seconds, **_frames_facts(preparer.clip(video).frames)}


def through_decord(video: str, warm_up: str, config: VideoConfig) -> dict[str, float]:
    return prepare_into_store(video, warm_up, replace(config, decoder="decord"))


def touch(video: str, warm_up: str, config: VideoConfig) -> dict[str, float]:
    """The first look of a new process checks the entry; later ones do not."""
    from museg_ray.video.prepare import Preparer

    preparer = Preparer(config)
    preparer.clip(warm_up)
    seconds = []
    for _ in range(6):
        start_s = time.perf_counter()
        preparer.clip(video)
        seconds.append(time.perf_counter() - start_s)
    theirs = np.load(Path(config.store_dir) / RENDERED)
    return {"first_s": seconds[0], "later_s": float(np.median(seconds[1:])), "grey_levels": _gap(video, config, theirs)}


def qwen_vl_utils(video: str, warm_up: str, config: VideoConfig) -> dict[str, float]:
    """As MUSEG's published code calls it, with decord; then the stock processor on the result, as there."""
    os.environ["FORCE_QWENVL_VIDEO_READER"] = "decord"
    vision_process = importlib.import_module("qwen_vl_utils.vision_process")  # a package for development alone
    settings = {"min_pixels": config.min_pixels, "total_pixels": config.total_pixels, "max_frames": config.max_frames}
    vision_process.fetch_video({"video": warm_up, "fps": config.fps, **settings})
    start_s = time.perf_counter()
    frames = vision_process.fetch_video({"video": video, "fps": config.fps, **settings})
    facts = {"seconds": time.perf_counter() - start_s, "peak_mib": _peak_mib()}
    thwc = frames.permute(0, 2, 3, 1).round().byte().numpy()
    np.save(Path(config.store_dir) / RENDERED, thwc)
    return {**_frames_facts(thwc), **facts, "stock_tokens": _stock_tokens(thwc)}


def _gap(video: str, config: VideoConfig, theirs: ByteArray) -> float:
    """Mean difference to qwen-vl-utils' frames where ours are taken at its times."""
    from museg_ray.video.prepare import read_clip

    ours = read_clip(video, replace(config, sampling="qwen_vl_utils")).frames
    return float(np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).mean())


def _frames_facts(frames: ByteArray) -> dict[str, float]:
    num_frames, height, width, _ = frames.shape
    tokens = num_frames // 2 * height * width / VISUAL_TOKEN_PIXELS
    return {"tokens": tokens, "frames_mib": frames.nbytes / MIB, "peak_mib": _peak_mib()}


def _stock_tokens(frames: ByteArray) -> float:
    """Visual tokens where the stock processor may resize once more, as it does by default."""
    import torch
    from transformers import Qwen2VLVideoProcessor

    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    grid = Qwen2VLVideoProcessor()(videos=[pixels], do_sample_frames=False, return_tensors="pt")["video_grid_thw"][0]
    return float(grid.prod() / 4)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


WAYS = {"store": prepare_into_store, "decord": through_decord, "touch": touch, "qwen_vl_utils": qwen_vl_utils}

if __name__ == "__main__":
    way, path, warm_up_path, store_dir = sys.argv[1:]
    print(json.dumps(WAYS[way](path, warm_up_path, VideoConfig(store_dir=store_dir))))
