"""`museg bench learner`: one packed pass over a group against the published trainer's way, row by row; and the vision
tower alone against transformers' way, window by window."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from museg_ray.bench.apart import Facts, Round, compare_ways, measure_apart, measure_rounds, ratio
from museg_ray.bench.learner_case import Shape
from museg_ray.bench.learner_way import ROWS, TOWER_WAYS, WINDOWS, Numbers, measure_way
from museg_ray.bench.result import BenchResult, Row, Target, Tell, at_least, at_most
from museg_ray.errors import ResourceError

VIDEO_STEPS = (16, 56, 112)
"""Of each shape pairs of frames, 30 video tokens each: the last is MUSEG's."""
GAP_TARGET, TARGETS = 1e-4, {ROWS: (5.0, 0.25), WINDOWS: (1.5, 1.2)}
"""First way -> speed and memory against it. The tower's arithmetic takes most of its time on a CPU, and windows of
several lengths are copied there."""
FACTS = ("seconds", "peak_mib", "tokens", "patches", "calls")


def bench_learner(model: str, rounds: int, tell: Tell) -> BenchResult:
    """Medians over `rounds` rounds; in each every way runs once, in a new process of its own. On the GPU where torch
    sees one.

    Args:
        model: `tiny` (float32) or `3b` (bfloat16).
        tell: is told what is being done.

    Raises:
        ResourceError: a GPU is needed and there is none, or a measurement failed.
    """
    has_gpu = torch.cuda.is_available()
    if model == "3b" and not has_gpu:
        raise ResourceError("museg bench learner --model 3b needs a GPU, and torch sees none here; use --model tiny.")
    packed = (ROWS, "split", "flex") if has_gpu else (ROWS, "split")  # flex is slow, without a kernel, on a CPU
    device = "cuda" if has_gpu else "cpu"
    rows, targets = list[Row](), list[Target]()
    for ways, video_steps in [*((packed, video_steps) for video_steps in VIDEO_STEPS), (TOWER_WAYS, VIDEO_STEPS[-1])]:
        case = f"{Shape(video_steps).video_tokens:,} video tokens"
        measured = measure_rounds(case, rounds, tell, partial(measure_round, ways, model, device, video_steps))
        rows += compare_ways(case, FACTS, measured)
        if video_steps == VIDEO_STEPS[-1]:
            targets += make_targets(measured, is_exact=model == "tiny")
    return BenchResult("learner", tuple(rows), tuple(targets))


def measure_round(ways: Sequence[str], model: str, device: str, video_steps: int) -> Round:
    """Each way's facts, with how far its numbers are from those of the first way."""
    with tempfile.TemporaryDirectory(prefix="museg-bench-") as folder:
        files = {way: str(Path(folder) / f"{way}.pt") for way in ways}
        facts = {way: measure_apart(measure_way, way, model, device, video_steps, files[way]) for way in ways}
        base = torch.load(files[ways[0]])
        return {way: facts[way] | compare(base, torch.load(files[way])) for way in ways}


def compare(base: Numbers, ours: Numbers) -> Facts:
    """Largest difference of a log-prob in nats, and norm of the difference of the gradients over their norm."""
    return {
        "logprob_gap": (ours["logprobs"] - base["logprobs"]).abs().max().item(),
        "gradient_gap": ((ours["gradient"] - base["gradient"]).norm() / base["gradient"].norm()).item(),
    }


def make_targets(measured: Sequence[Round], is_exact: bool) -> list[Target]:
    """What ways are to reach at MUSEG's shape against the first.

    Args:
        is_exact: in float32. In bfloat16 the ways round differently.
    """
    targets, (base, *ways) = list[Target](), measured[0]
    speed, memory = TARGETS[base]
    for way in ways:
        targets += [
            at_least(f"{way}: times faster than {base}", 1 / ratio("seconds", way, measured), speed),
            at_most(f"{way}: peak memory of the pass / {base}", ratio("peak_mib", way, measured), memory),
        ]
        if is_exact:
            logprob, gradient = (max(each[way][gap] for each in measured) for gap in ("logprob_gap", "gradient_gap"))
            targets += [
                at_most(f"{way}: largest difference of an output (log-prob, feature)", logprob, GAP_TARGET),
                at_most(f"{way}: relative difference of the gradient", gradient, GAP_TARGET),
            ]
    return targets
