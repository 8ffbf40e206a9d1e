"""`museg bench video`: preparing clips against qwen-vl-utils, touching them again, and their way to the engine."""

import asyncio
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from museg_ray.bench.apart import Facts, measure_apart
from museg_ray.bench.result import BenchResult, Row, Target, at_least, at_most
from museg_ray.bench.video_way import MIB
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

WAY_MODULE = "museg_ray.bench.video_way"

Tell = Callable[[str], None]


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
            path = video.write(Path(folder))
            measured = []
            for number in range(rounds):
                tell(f"{video.name}: round {number + 1} of {rounds}")
                measured.append(_round(path, warm_up, Path(folder) / f"store-{video.name}-{number}"))
            rows += _rows(video.name, measured)
            targets += _targets(video.name, measured)
        tell(f"a group of {GROUP_SIZE} on its way to the engine")
        sent, frames_bytes = asyncio.run(_bytes_to_engine(Path(folder) / "30_s_360p.mp4"))
    rows += [_bytes_row(way, num_bytes) for way, num_bytes in sent.items()]
    targets.append(at_most("bytes of a group to the engine / frames", sent["ours"] / frames_bytes, BYTES_TARGET))
    return BenchResult("video", tuple(rows), tuple(targets))


def _round(video: Path, warm_up: Path, store: Path) -> dict[str, Facts]:
    store.mkdir()
    paths = [str(video), str(warm_up), str(store)]
    return {
        way: measure_apart(way, WAY_MODULE, paths, CUDA_VISIBLE_DEVICES="")
        for way in ("store", "decord", "qwen_vl_utils", "touch")
    }


def _rows(name: str, measured: list[dict[str, Facts]]) -> list[Row]:
    ours, decord, theirs, touch = (_medians([facts[way] for facts in measured]) for way in measured[0])
    return [
        _row(name, "qwen-vl-utils", theirs["seconds"], theirs, theirs["stock_tokens"]),
        _row(name, "ours, to the store", ours["seconds"], ours, ours["tokens"]),
        _row(name, "ours, through decord", decord["seconds"], decord, decord["tokens"]),
        _row(name, "ours, first look", touch["first_s"], {}, ours["tokens"]),
        _row(name, "ours, later look", touch["later_s"], {}, ours["tokens"]),
    ]


def _row(name: str, way: str, seconds: float, facts: Facts, tokens: float) -> Row:
    columns: Row = {"video": name, "way": way, "ms": 1000 * seconds, "peak MiB": facts.get("peak_mib", "")}
    return columns | {"tokens seen": tokens, "MiB to engine": ""}


def _bytes_row(way: str, num_bytes: float) -> Row:
    row = _row("30 s 360p", f"{way}, group of {GROUP_SIZE}", 0.0, {}, 0.0)
    return row | {"ms": "", "tokens seen": "", "MiB to engine": num_bytes / MIB}


def _targets(name: str, measured: list[dict[str, Facts]]) -> list[Target]:
    speed = median(facts["qwen_vl_utils"]["seconds"] / facts["store"]["seconds"] for facts in measured)
    memory = median(facts["store"]["peak_mib"] / facts["qwen_vl_utils"]["peak_mib"] for facts in measured)
    touch = _medians([facts["touch"] for facts in measured])
    return [
        at_least(f"{name}: times faster than qwen-vl-utils", speed, SPEED_TARGET),
        at_most(f"{name}: peak memory / qwen-vl-utils", memory, MEMORY_TARGET),
        at_most(f"{name}: ms of a later look", 1e3 * touch["later_s"], TOUCH_TARGET_MS),
        at_most(f"{name}: ms of a process's first look", 1e3 * touch["first_s"], TOUCH_TARGET_MS),
        at_most(f"{name}: mean difference of the frames, grey levels", touch["grey_levels"], 1.0),
    ]


def _medians(facts: list[Facts]) -> Facts:
    return {name: median(one[name] for one in facts) for name in facts[0]}


async def _bytes_to_engine(video: Path) -> tuple[dict[str, float], float]:
    """Bytes that one group's requests move to the engine's process, by way; and those of the clip's frames."""
    from museg_ray.rollout.vllm_setup import engine_environment

    rollout = RolloutConfig(num_threads=1, max_num_seqs=GROUP_SIZE, kv_cache_gib=0.5, enforce_eager=True)
    os.environ.update(engine_environment(rollout))  # before vLLM is imported

    from museg_ray.bench.naive_engine import NaiveEngine
    from museg_ray.rollout.engine import RolloutEngine
    from museg_ray.video.prepare import read_clip

    with tempfile.TemporaryDirectory(prefix="museg-bench-") as folder:
        clip = read_clip(str(video), VideoConfig(store_dir=folder))
    ways: dict[str, type[RolloutEngine]] = {"vLLM's own way": NaiveEngine, "ours": RolloutEngine}
    return {way: await _sent(engine, rollout, clip) for way, engine in ways.items()}, clip.frames.nbytes


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
