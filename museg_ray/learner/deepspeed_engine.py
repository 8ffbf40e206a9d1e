"""Starting DeepSpeed: process group, configuration, optimiser and schedule; starting its optimiser anew."""

import logging
import os
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from museg_ray.config.schema import Config
from museg_ray.errors import ConfigError
from museg_ray.learner.schedule import run_learning_rate_factor, schedule_spans

MAX_BUCKET_ELEMENTS = 200_000_000
"""Gradient elements that ZeRO reduces at once; bounds a buffer that DeepSpeed allocates in full."""


def learner_device() -> torch.device:
    """The device that DeepSpeed's accelerator stands for: the process's GPU where it sees one, else the CPU."""
    return torch.device(get_accelerator().current_device_name())


def start_engine(policy: nn.Module, config: Config) -> deepspeed.DeepSpeedEngine:
    """Hand the policy to DeepSpeed, with AdamW over its trainable parameters and the run's learning-rate schedule.

    Raises:
        ConfigError: a combination of settings that DeepSpeed cannot do.
    """
    _join_process_group()
    learner = config.learner
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=learner.learning_rate,
        betas=learner.adam_betas,
        weight_decay=learner.weight_decay,
        fused=learner_device().type == "cuda",  # else a temporary copy of every ZeRO partition
    )
    factor = partial(
        run_learning_rate_factor,
        spans=schedule_spans(config.train.phases),
        warmup_steps=learner.warmup_steps,
        schedule=learner.schedule,
    )
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=optimizer,
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, factor),
        config=deepspeed_config(config, sum(parameter.numel() for parameter in parameters)),
    )
    return engine


def reset_optimizer(engine: deepspeed.DeepSpeedEngine) -> None:
    """Forget AdamW's moments and its step count, on which the bias correction rests. Weights and rate stay.

    At every ZeRO stage `engine.optimizer.state` is the state of the AdamW that `start_engine` made: by parameter at
    stage 0, by flat float32 partition above; empty before the first update, then tensors whose fresh values are 0.
    """
    for state in engine.optimizer.state.values():
        for tensor in state.values():
            tensor.zero_()  # in place: DeepSpeed keeps views of the moments


def deepspeed_config(config: Config, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration for this run.

    Raises:
        ConfigError: ZeRO stage 0 with bfloat16, whose gradients DeepSpeed could only add up in bfloat16.
    """
    learner, is_bfloat16 = config.learner, config.model.dtype == "bfloat16"
    if learner.zero_stage == 0 and is_bfloat16:
        raise ConfigError(
            "learner.zero_stage is 0 and model.dtype is bfloat16, where DeepSpeed keeps no float32 gradients; "
            "set learner.zero_stage to 1 (the same arithmetic in float32) or model.dtype to float32."
        )
    return {
        # A micro-batch is a group, and a step has as many as the driver sends: the learner itself divides the losses
        # and says when the step ends, so DeepSpeed must neither count nor scale.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "data_types": {"grad_accum_dtype": "float32"},
        "bf16": {"enabled": is_bfloat16},
        "gradient_clipping": learner.max_grad_norm,
        "zero_optimization": {
            "stage": learner.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": min(num_parameters, MAX_BUCKET_ELEMENTS),
        },
        # torch's AdamW everywhere: DeepSpeed's own CPU optimiser needs a compiler at the first start.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def _join_process_group() -> None:
    """Make the process group of this one rank, once a process.

    Its store lives in the process and no port is opened, so two runs on one machine cannot collide. With several
    ranks a store of rank 0's takes its place here; nothing else in the learner counts ranks.
    """
    if torch.distributed.is_initialized():
        return
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would compile an op for all-reduce through shared memory at the first start (40 s, and a compiler must
    # be there); this is the table it looks in. Without the op it uses the process group's own all-reduce.
    deepspeed.ops.__compatible_ops__ = {}
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists; Ray shows the process its own GPUs only
    backend = "nccl" if learner_device().type == "cuda" else "gloo"
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]  # documented, missing in __all__
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
