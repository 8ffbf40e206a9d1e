"""Starting DeepSpeed: configuration, optimiser and the frozen reference's engine; starting its optimiser anew."""

import math
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from museg_ray.config.learning import LearnerConfig
from museg_ray.config.schema import Config
from museg_ray.model.policy import PolicyModel

MAX_BUCKET_ELEMENTS = 200_000_000
"""Gradient elements that ZeRO reduces at once; bounds a buffer that DeepSpeed allocates in full."""


def learner_device() -> torch.device:
    """The device that DeepSpeed's accelerator stands for: the process's GPU where it sees one, else the CPU."""
    return torch.device(get_accelerator().current_device_name())


def start_engine(policy: PolicyModel, config: Config) -> deepspeed.DeepSpeedEngine:
    """Hand the policy to DeepSpeed, with AdamW over its trainable parameters. The process group must be joined.

    The learning rate is not DeepSpeed's matter: `set_learning_rate` sets it before each update.
    """
    learner = config.learner
    groups = list(_parameter_groups(policy, learner))
    optimizer = torch.optim.AdamW(
        groups,
        lr=learner.learning_rate,
        betas=learner.adam_betas,
        weight_decay=learner.weight_decay,
        # Else a temporary copy of every ZeRO partition. Offloaded partitions lie on the CPU.
        fused=learner_device().type == "cuda" and not learner.offload_optimizer,
    )
    num_parameters = sum(parameter.numel() for group in groups for parameter in group["params"])
    engine, *_ = deepspeed.initialize(
        model=policy, optimizer=optimizer, config=deepspeed_config(config, num_parameters)
    )
    if learner.zero_stage == 0:
        engine.enable_backward_allreduce = False  # `apply_gradients` does it: it needs the norm before the step
    return engine


def _parameter_groups(policy: PolicyModel, learner: LearnerConfig) -> Iterator[dict[str, Any]]:
    """The trainable parameters by their learning rate: language model, vision tower, mergers."""
    mergers = {id(p) for module in policy.family.mergers(policy.model) for p in module.parameters()}
    vision = {id(p) for p in policy.model.model.visual.parameters()}
    trained = [p for p in policy.parameters() if p.requires_grad]
    rates = {
        "language": (learner.learning_rate, [p for p in trained if id(p) not in vision]),
        "vision": (learner.vision_learning_rate, [p for p in trained if id(p) in vision - mergers]),
        "merger": (learner.merger_learning_rate, [p for p in trained if id(p) in mergers]),
    }
    for rate, parameters in rates.values():
        if parameters:
            rate = learner.learning_rate if rate is None else rate
            yield {"params": parameters, "lr": rate, "full_rate": rate}


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, factor: float) -> None:
    """Set each parameter group to `factor` times its configured rate."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["full_rate"] * factor


def adamw_of(engine: deepspeed.DeepSpeedEngine) -> torch.optim.AdamW:
    """The AdamW that `start_engine` made: the engine's optimiser itself at ZeRO 0, inside DeepSpeed's above."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.AdamW) else optimizer.optimizer


def reset_optimizer(engine: deepspeed.DeepSpeedEngine) -> None:
    """Forget AdamW's moments and its step count, on which the bias correction rests. Weights and rate stay.

    Its state is kept by parameter at ZeRO 0, by flat float32 partition above; it is empty before the first update,
    then tensors whose fresh values are 0.
    """
    for state in adamw_of(engine).state.values():
        for tensor in state.values():
            tensor.zero_()  # in place: DeepSpeed keeps views of the moments


def start_reference(policy: PolicyModel, config: Config) -> torch.nn.Module:
    """A frozen policy, placed as `learner.reference` says; called like the policy."""
    policy.requires_grad_(False).eval()
    if config.learner.reference == "device":
        return policy.to(learner_device())
    zero: dict[str, Any] = {"stage": 3}
    if config.learner.reference == "cpu":
        zero["offload_param"] = {"device": "cpu"}
    is_bfloat16 = config.model.dtype == "bfloat16"
    settings = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": is_bfloat16}, "zero_optimization": zero}
    engine, *_ = deepspeed.initialize(model=policy, config=settings | {"steps_per_print": None})
    engine.eval()  # returns nothing
    return engine


def deepspeed_config(config: Config, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration for this run."""
    learner, is_bfloat16 = config.learner, config.model.dtype == "bfloat16"
    # DeepSpeed could only add up its gradients in bfloat16: the configuration's checks refuse it.
    assert learner.zero_stage > 0 or not is_bfloat16, "ZeRO 0 with bfloat16"
    return {
        # An update has as many micro-batches as its groups fill, and the learner weighs the losses and says when the
        # update ends; so DeepSpeed must neither count nor scale.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "data_types": {"grad_accum_dtype": "float32"},
        "communication_data_type": "fp32" if learner.reduce_in_float32 else None,
        "bf16": {"enabled": is_bfloat16},
        "gradient_clipping": learner.max_grad_norm if learner.zero_stage else 0.0,
        "zero_optimization": _zero_config(learner, num_parameters),
        # torch's AdamW everywhere: DeepSpeed's own CPU optimiser needs a compiler at the first start.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def _zero_config(learner: LearnerConfig, num_parameters: int) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": learner.zero_stage,
        # On a GPU weights are gathered, and gradients reduced, beside the arithmetic. A CPU has no streams to do it on.
        "overlap_comm": learner_device().type == "cuda",
        "reduce_bucket_size": min(num_parameters, MAX_BUCKET_ELEMENTS),
    }
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if learner.offload_weights:
        zero["offload_param"] = {"device": "cpu"}
    return zero


def apply_gradients(engine: deepspeed.DeepSpeedEngine, max_grad_norm: float) -> float | None:
    """End an update: reduce the accumulated gradients over the ranks (their mean), clip, step.

    Returns:
        The norm of the whole gradient before clipping. None when it is not finite, on every rank: the gradients are
        then dropped, weights and optimiser are as before.
    """
    if engine.zero_optimization_stage() == 0:
        return _plain_step(engine, max_grad_norm)
    engine.step()
    if not engine.was_step_applied():
        _drop_gradients(engine)
        return None
    norm = float(engine.get_global_grad_norm())
    assert math.isfinite(norm) and norm >= 0, f"DeepSpeed applied a gradient of norm {norm}"
    return norm


def _drop_gradients(engine: deepspeed.DeepSpeedEngine) -> None:
    """What DeepSpeed 0.19.8 forgets to drop of a step that it skips, at ZeRO 1 and 2 with an offloaded optimiser: with
    bfloat16 weights its float32 sums go on from the NaN, and every later update would be skipped too."""
    sums = getattr(engine.optimizer, "averaged_gradients", {})
    if engine.zero_optimization_stage() < 3:
        for group in sums:
            sums[group] = None


def _plain_step(engine: deepspeed.DeepSpeedEngine, max_grad_norm: float) -> float | None:
    """`apply_gradients` at ZeRO 0, where DeepSpeed neither tells the norm nor looks whether it is finite."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= torch.distributed.get_world_size()
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not norm.isfinite():
        engine.zero_grad()
        return None
    if max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    engine.step()
    return norm.item()
