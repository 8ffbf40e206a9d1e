"""`museg bench video`: preparing clips against qwen-vl-utils, touching them again, and their way to the engine."""

import asyncio
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from museg_ray.bench.apart import Round, compare_ways, measure_apart, measure_rounds, ratio
from museg_ray.bench.result import BenchResult, Row, Target, Tell, at_least, at_most, compared
from museg_ray.bench.video_way import into_store, qwen_vl_utils, through_decord, touch
from museg_ray.bench.videos import BenchVideo
from museg_ray.config.schema import ModelConfig, RolloutConfig, VideoConfig
from museg_ray.errors import ResourceError
from museg_ray.types import Clip, GroundingQuery, Issue

if TYPE_CHECKING:
    from museg_ray.rollout.engine import RolloutEngine

WARM_UP = BenchVideo("warm up", 30, 160, 96)
"""Each process sees it first: a reader lives for hundreds of videos."""
VIDEOS = (BenchVideo("30 s 360p", 30, 640, 360), BenchVideo("120 s 720p", 120, 1280, 720))
GROUP_SIZE = 8
MODEL_TOKENS = 4096
"""A clip of MUSEG's shape has 3,360 tokens."""
SPEED_TARGET, MEMORY_TARGET, TOUCH_TARGET_MS, BYTES_TARGET = 2.0, 0.5, 5.0, 1.2

STORE, TOUCH = "to the store", "from the store"
WAYS = {"qwen-vl-utils": qwen_vl_utils, STORE: into_store, "through decord": through_decord, TOUCH: touch}
MIB = 1024**2


def bench_video(rounds: int, tell: Tell) -> BenchResult:
    """Medians over `rounds` rounds; in each every way runs once, in a new process of its own.

    Args:
        tell: is told what is being done.

    Raises:
        ResourceError: qwen-vl-utils or decord is not installed.
    """
    for package in ("qwen_vl_utils", "decord"):
        if importlib.util.find_spec(package) is None:
            raise ResourceError(f"museg bench video compares with {package}; install it with the extra `dev`.")
    rows, targets = list[Row](), list[Target]()
    with tempfile.TemporaryDirectory(prefix="museg-bench-") as folder:
        warm_up = WARM_UP.write(Path(folder))
        for video in VIDEOS:
            tell(f"rendering {video.name}")
            measured = measure_rounds(
                video.name, rounds, tell, partial(measure_round, video.write(Path(folder)), warm_up)
            )
            rows += compare_ways(video.name, ("seconds", "peak_mib", "tokens_seen"), measured)
            targets += make_targets(video.name, measured)
        tell(f"a group of {GROUP_SIZE} on its way to the engine")
        ours, naive, frames_bytes = asyncio.run(_bytes_to_engine(Path(folder) / "30_s_360p.mp4"))
    what = f"MiB to the engine, group of {GROUP_SIZE}: ours / vLLM's own way"
    rows.append(compared(what, VIDEOS[0].name, ours / MIB, naive / MIB, unit="value"))
    targets.append(at_most("bytes of a group to the engine / frames", ours / frames_bytes, BYTES_TARGET))
    return BenchResult("video", tuple(rows), tuple(targets))


def measure_round(video: Path, warm_up: Path) -> Round:
    """Every way with a new store; `touch` finds there what the others left."""
    with tempfile.TemporaryDirectory(prefix="museg-bench-") as store:
        paths = [str(video), str(warm_up), store]
        return {way: measure_apart(measure, *paths, CUDA_VISIBLE_DEVICES="") for way, measure in WAYS.items()}


def make_targets(name: str, measured: Sequence[Round]) -> list[Target]:
    speed, memory = 1 / ratio("seconds", STORE, measured), ratio("peak_mib", STORE, measured)
    first_s, later_s, grey_levels = (
        median(each[TOUCH][fact] for each in measured) for fact in ("first_s", "later_s", "grey_levels")
    )
    return [
        at_least(f"{name}: times faster than qwen-vl-utils", speed, SPEED_TARGET),
        at_most(f"{name}: peak memory / qwen-vl-utils", memory, MEMORY_TARGET),
        at_most(f"{name}: ms of a later look", 1e3 * later_s, TOUCH_TARGET_MS),
        at_most(f"{name}: ms of a process's first look", 1e3 * first_s, TOUCH_TARGET_MS),
        at_most(f"{name}: mean difference of the frames, grey levels", grey_levels, 1.0),
    ]


async def _bytes_to_engine(video: Path) -> tuple[float, float, float]:
    """Bytes that one group's requests move to the engine's process, in our way and in vLLM's own; and those of the
    clip's frames."""
    from museg_ray.rollout.vllm_setup import engine_environment

    rollout = RolloutConfig(num_threads=1, max_num_seqs=GROUP_SIZE, kv_cache_gib=0.5, enforce_eager=True)
    os.environ.update(engine_environment(rollout))  # before vLLM is imported

    from museg_ray.bench.naive_engine import NaiveEngine
    from museg_ray.rollout.engine import RolloutEngine
    from museg_ray.video.prepare import read_clip

    with tempfile.TemporaryDirectory(prefix="museg-bench-") as folder:
        clip = read_clip(str(video), VideoConfig(store_dir=folder))
    naive, ours = [await _sent(engine, rollout, clip) for engine in (NaiveEngine, RolloutEngine)]
    return ours, naive, clip.frames.nbytes


async def _sent(engine_class: "type[RolloutEngine]", rollout: RolloutConfig, clip: Clip) -> float:
    from museg_ray.model.prompt import chat_prompt_ids
    from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, load_tokenizer
    from museg_ray.rollout.engine import Sampling

    model = ModelConfig(dtype="float32", max_tokens=MODEL_TOKENS)
    engine = await engine_class.start(PACKAGED_MODEL_DIR, model, rollout)
    try:
        prompt_ids = chat_prompt_ids(load_tokenizer(PACKAGED_MODEL_DIR), "Find every time it happens.")
        issue = Issue(0, GroundingQuery("bench/0", clip.video, "it happens", ()), phase="bench", seed=0)
        before = engine.bytes_sent
        await engine.generate(issue, prompt_ids, clip, Sampling(GROUP_SIZE, 1.0, 4))
        return float(engine.bytes_sent - before)
    finally:
        engine.close()
