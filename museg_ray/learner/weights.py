"""Whole weights out of an engine that may hold a part of each on every rank, and into one."""

from collections.abc import Collection, Iterable, Iterator

import deepspeed
import torch
from torch import nn

from museg_ray.config.learning import LearnerConfig
from museg_ray.model.lora import merged_weights
from museg_ray.model.policy import PolicyModel
from museg_ray.weights.blob import Part, part_of

NamedTensors = Iterator[tuple[str, torch.Tensor]]


def module_weights(policy: nn.Module, is_wanted: bool, frozen: Collection[Part] = ()) -> NamedTensors:
    """Every parameter under its own name, whole, as a copy on the CPU. All ranks together, each to the end.

    Args:
        policy: a `PolicyModel` or DeepSpeed's engine around one.
        is_wanted: False on ranks that only help to gather; they get nothing.
        frozen: parts that are left out.
    """
    named = ((name, p) for name, p in _model(policy).named_parameters() if part_of(name) not in frozen)
    for name, parameter in named:
        is_partitioned = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_partitioned):
            # A copy, since a gathered parameter is emptied when the block ends.
            copy = parameter.detach().to("cpu", copy=True) if is_wanted else None
        if copy is not None:
            yield name, copy


def policy_weights(
    policy: nn.Module, learner: LearnerConfig, is_wanted: bool = True, frozen: Collection[Part] = ()
) -> NamedTensors:
    """As `module_weights`, under the names of the plain Hugging Face model: adapters are merged, tied weights come
    once."""
    weights = module_weights(policy, is_wanted, frozen)
    return merged_weights(weights, learner.lora) if learner.lora.rank else weights


def copy_weights(weights: Iterable[tuple[str, torch.Tensor]], target: nn.Module) -> None:
    """Copy weights into a frozen policy, whole or sharded. All ranks together, each with all the weights."""
    model = _model(target)
    for name, weight in weights:
        parameter = model.get_parameter(name)
        is_partitioned = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_partitioned), torch.no_grad():
            parameter.copy_(weight)


def _model(policy: nn.Module) -> nn.Module:
    inner = policy.module if isinstance(policy, deepspeed.DeepSpeedEngine) else policy
    assert isinstance(inner, PolicyModel)
    return inner.model
