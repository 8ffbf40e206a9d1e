"""One measurement of `museg bench learner`, for a process of its own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from museg_ray.bench.apart import Facts, status_mib
from museg_ray.bench.learner_case import TOWER_FRAME_PATCHES, Group, Shape, group_loss, load_model, make_group
from museg_ray.bench.naive_learner import row_logprobs
from museg_ray.model.family import family_of
from museg_ray.model.packing import pack_rows
from museg_ray.model.policy import PolicyModel, Videos
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, VisionSpec, load_vision_spec
from museg_ray.model.tower import use_one_call

MIB = 1024**2
ROWS = "row by row"
TOWER_WAYS = WINDOWS, ONE_CALL = "tower by windows", "tower"
"""The vision tower as transformers has it, and as the learner runs it."""
WARM_UP = Shape(video_steps=1, group_size=2, completion_tokens=(4, 8))
CHUNK_TOKENS = 1024
"""The default of `learner.chunk_tokens`."""
MOST_GRADIENTS = 2_000_000
"""Of a model with more weights, evenly spaced ones are compared."""

Forward = Callable[[Group], torch.Tensor]
"""A group -> the log-probs [N] of its completion tokens."""
Numbers = dict[str, torch.Tensor]


class AttentionCalls(TorchFunctionMode):
    """Counts the calls of attention kernels while it is entered."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (scaled_dot_product_attention, torch.ops.torch_attn._varlen_attn)
        return function(*args, **(kwargs or {}))


def measure_way(way: str, model_name: str, device: str, video_steps: int, numbers_file: str) -> Facts:
    """Leaves log-probs and gradients in a file, to compare.

    Args:
        way: `ROWS` (as the published trainer), an attention of `learner.attention`, or one of `TOWER_WAYS` for the
            vision tower alone.
        model_name: `tiny` or `3b`.
        device: `cpu` or `cuda`.
        video_steps: pairs of frames.
        numbers_file: to write.
    """
    model = load_model(model_name, torch.device(device))
    facts, numbers = (measure_tower if way in TOWER_WAYS else measure)(way, model, Shape(video_steps))
    torch.save(numbers, numbers_file)
    return facts


def measure(way: str, model: Any, shape: Shape) -> tuple[Facts, Numbers]:
    """Of two forward and backward passes over the same group: the seconds of the second one; the MiB at the peak over
    what weights, their gradients and inputs take; tokens and patches of a pass; and its log-probs and gradients."""
    spec = load_vision_spec(PACKAGED_MODEL_DIR)
    forward = make_forward(way, model, spec)
    run_pass(forward, make_group(WARM_UP, spec, model.device))  # imports, threads and gradients take their memory here
    group = make_group(shape, spec, model.device)
    facts, numbers = _second_pass(model, lambda: run_pass(forward, group))
    num_prompt, lengths = len(group.row.prompt_ids), [len(completion) for completion in group.row.completions]
    copies = len(lengths) if way == ROWS else 1
    tokens = copies * (num_prompt + max(lengths)) if way == ROWS else num_prompt + sum(lengths)
    return facts | {"tokens": tokens, "patches": copies * len(group.patches)}, numbers


def measure_tower(way: str, model: Any, shape: Shape) -> tuple[Facts, Numbers]:
    """As `measure`, of the vision tower and its mergers alone: a video's features in place of log-probs. Also how often
    attention is called in a forward pass."""
    if way == ONE_CALL:
        use_one_call(model.model.visual)
    spec, family = load_vision_spec(PACKAGED_MODEL_DIR), family_of(model.config.model_type)

    def run(group: Group) -> torch.Tensor:
        features = family.features(model, group.patches, torch.tensor([group.grid])).tokens.float()
        features.square().mean().backward()
        return features.detach()

    run(make_group(WARM_UP, spec, model.device))
    group = make_group(Shape(2 * shape.video_steps, frame_patches=TOWER_FRAME_PATCHES), spec, model.device)
    facts, numbers = _second_pass(model.model.visual, lambda: run(group))
    with AttentionCalls() as calls:
        run(group)
    return facts | {"patches": len(group.patches), "calls": calls.count}, numbers


def _second_pass(model: Any, run: Callable[[], torch.Tensor]) -> tuple[Facts, Numbers]:
    """Runs twice; `run` gives the log-probs and adds to the model's gradients."""
    start_mib = _start_watching(model.device)
    for _ in range(2):
        model.zero_grad(set_to_none=False)
        start_s = time.perf_counter()
        logprobs = run()
        if logprobs.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start_s
    peak_mib = _peak_mib(model.device) - start_mib
    return {"seconds": seconds, "peak_mib": peak_mib}, {"logprobs": logprobs.cpu(), "gradient": gradient(model)}


def make_forward(way: str, model: Any, spec: VisionSpec) -> Forward:
    if way == ROWS:
        return lambda group: row_logprobs(model, group)
    policy = PolicyModel(model, [], 1.0, way, CHUNK_TOKENS).to(model.device)

    def packed_logprobs(group: Group) -> torch.Tensor:
        pack = pack_rows([group.row], spec.video_token_id).to(group.patches.device)
        return torch.as_tensor(policy(pack, Videos(torch.tensor([group.grid]), group.patches))[0])

    return packed_logprobs


def run_pass(forward: Forward, group: Group) -> torch.Tensor:
    """Adds to the gradients; [N] log-probs."""
    logprobs = forward(group)
    group_loss(logprobs, group).backward()
    return logprobs.detach()


def gradient(model: Any) -> torch.Tensor:
    """[most of MOST_GRADIENTS] float32 on the CPU, in the order of the weights."""
    every = -(-sum(weight.numel() for weight in model.parameters()) // MOST_GRADIENTS)
    return torch.cat([weight.grad.flatten()[::every].float().cpu() for weight in model.parameters()])


def _start_watching(device: torch.device) -> float:
    """Forget the peak so far; MiB in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MIB
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew (proc_pid_clear_refs(5))
    return status_mib("VmRSS")


def _peak_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / MIB if device.type == "cuda" else status_mib("VmHWM")
