"""`museg bench learner`: one packed pass over a group against the published trainer's way, row by row; and the vision
tower alone against transformers' way, window by window."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from museg_ray.bench.apart import Facts, measure_apart
from museg_ray.bench.learner_case import Shape
from museg_ray.bench.learner_way import ONE_CALL, ROWS, TOWER_WAYS, WINDOWS, Numbers
from museg_ray.bench.result import BenchResult, Row, Target, at_least, at_most
from museg_ray.errors import ResourceError

VIDEO_STEPS = (16, 56, 112)
"""Of each shape pairs of frames, 30 video tokens each: the last is MUSEG's."""
GAP_TARGET, TARGETS = 1e-4, {ROWS: (5.0, 0.25), WINDOWS: (1.5, 1.2)}
"""First way -> speed and memory against it. The tower's arithmetic takes most of its time on a CPU, and windows of
several lengths are copied there."""
LABELS = {ROWS: "row by row", WINDOWS: "tower by windows", ONE_CALL: "tower"}

WAY_MODULE = "museg_ray.bench.learner_way"
Round = dict[str, Facts]
"""Way -> what one measurement of it found; `out_of_memory` alone where it did not fit."""


def bench_learner(model: str, device: str, rounds: int, tell: Callable[[str], None]) -> BenchResult:
    """Medians over `rounds` rounds; in each every way runs once, in a new process of its own. Where a way runs out of
    a GPU's memory, all of them are measured with gradient checkpointing too.

    Args:
        model: `tiny` (float32) or `3b` (bfloat16).
        device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
        tell: is told what is being done.

    Raises:
        ResourceError: a GPU is needed and there is none, or a measurement failed.
    """
    device = _device(device, model)
    packed = (
        (ROWS, "split", "flex") if device == "cuda" else (ROWS, "split")
    )  # flex is slow, without a kernel, on a CPU
    cases = [*((packed, video_steps) for video_steps in VIDEO_STEPS), (TOWER_WAYS, VIDEO_STEPS[-1])]
    rows, targets = list[Row](), list[Target]()
    for ways, video_steps in cases:
        for recompute in (False, True):
            measured = []
            for number in range(rounds):
                tell(f"{Shape(video_steps).video_tokens:,} video tokens: round {number + 1} of {rounds}")
                measured.append(measure_round(ways, model, device, video_steps, recompute))
            rows += [make_row(video_steps, way, recompute, measured) for way in ways]
            if video_steps == VIDEO_STEPS[-1]:
                targets += make_targets(measured, recompute, is_exact=model == "tiny")
            if not any(_ran_out(measured, way) for way in ways):
                break
    return BenchResult("learner", tuple(rows), tuple(targets))


def _device(name: str, model: str) -> str:
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ResourceError("museg bench learner --device cuda: torch sees no GPU here; use --device cpu.")
    device = "cuda" if has_gpu and name != "cpu" else "cpu"
    if model == "3b" and device == "cpu":
        reason = "torch sees none here" if not has_gpu else "--device cpu forbids it"
        raise ResourceError(f"museg bench learner --model 3b needs a GPU, and {reason}; use --model tiny.")
    return device


def measure_round(ways: Sequence[str], model: str, device: str, video_steps: int, recompute: bool) -> Round:
    """Each way's facts, with how far its numbers are from those of the first way."""
    with tempfile.TemporaryDirectory(prefix="museg-bench-") as folder:
        files = {way: Path(folder) / f"{way}.pt" for way in ways}
        case = [model, device, str(video_steps), str(int(recompute))]
        facts = {way: measure_apart(way, WAY_MODULE, [*case, str(file)]) for way, file in files.items()}
        for way, file in files.items():
            if file.exists() and files[ways[0]].exists():
                facts[way] |= compare(torch.load(files[ways[0]]), torch.load(file))
    return facts


def compare(base: Numbers, ours: Numbers) -> Facts:
    """Largest difference of a log-prob in nats, and norm of the difference of the gradients over their norm."""
    return {
        "logprob_gap": (ours["logprobs"] - base["logprobs"]).abs().max().item(),
        "gradient_gap": ((ours["gradient"] - base["gradient"]).norm() / base["gradient"].norm()).item(),
    }


def make_row(video_steps: int, way: str, recompute: bool, measured: Sequence[Round]) -> Row:
    """The table's line of one way at one shape.

    Video tokens, way, median seconds and MiB of a pass, tokens through the language model, patches through the tower;
    then against the first way, over all rounds: medians of times faster and of the share of memory, and the larger one
    of the two differences that `compare` finds. The tower's ways tell their attention calls too.
    """
    calls = f": {measured[0][way]['calls']:,.0f} calls" if "calls" in measured[0][way] else ""
    row: Row = {"video": Shape(video_steps).video_tokens, "way": _label(way, recompute) + calls, "s": "out of memory"}
    row |= dict.fromkeys(("MiB", "tokens", "patches", "faster", "memory", "Δ"), "")
    if _ran_out(measured, way):
        return row
    facts = [each[way] for each in measured]
    row |= {
        "s": median(each["seconds"] for each in facts),
        "MiB": median(each["peak_mib"] for each in facts),
        "tokens": facts[0]["tokens"],
        "patches": facts[0]["patches"],
    }
    if not _ran_out(measured, _base(measured)):
        row |= {
            "faster": _speed(measured, way),
            "memory": _memory(measured, way),
            "Δ": float(f"{max(max(each['logprob_gap'], each['gradient_gap']) for each in facts):.0e}"),  # little room
        }
    return row


def make_targets(measured: Sequence[Round], recompute: bool, is_exact: bool) -> list[Target]:
    """What ways are to reach at MUSEG's shape against the first; without those that cannot be told, as one ran out of
    memory.

    Args:
        is_exact: in float32. In bfloat16 the ways round differently: that is shown, not judged.
    """
    targets, base = list[Target](), _base(measured)
    speed, memory = TARGETS[base]
    for way in measured[0]:
        if way == base or _ran_out(measured, way) or _ran_out(measured, base):
            continue
        label, than = _label(way, recompute), _label(base, recompute)
        targets += [
            at_least(f"{label}: times faster than {than}", _speed(measured, way), speed),
            at_most(f"{label}: peak memory of the pass / {than}", _memory(measured, way), memory),
        ]
        if is_exact:
            logprob, gradient = (max(each[way][gap] for each in measured) for gap in ("logprob_gap", "gradient_gap"))
            targets += [
                at_most(f"{label}: largest difference of an output (log-prob, feature)", logprob, GAP_TARGET),
                at_most(f"{label}: relative difference of the gradient", gradient, GAP_TARGET),
            ]
    return targets


def _label(way: str, recompute: bool) -> str:
    return LABELS.get(way, way) + (", recomputed" if recompute else "")


def _base(measured: Sequence[Round]) -> str:
    """The way that the others are compared with: the first."""
    return next(iter(measured[0]))


def _ran_out(measured: Sequence[Round], way: str) -> bool:
    return any("out_of_memory" in each[way] for each in measured)


def _speed(measured: Sequence[Round], way: str) -> float:
    # Round by round: on a machine that others use too, the speed of a core changes from one to the next.
    return median(each[_base(measured)]["seconds"] / each[way]["seconds"] for each in measured)


def _memory(measured: Sequence[Round], way: str) -> float:
    return median(each[way]["peak_mib"] / each[_base(measured)]["peak_mib"] for each in measured)
