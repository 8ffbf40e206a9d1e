"""Low-rank adapters on the language model (LoRA, arXiv 2106.09685): peft's layers inside the model's own.

The model keeps its class. A layer `q_proj` then has its weight in `q_proj.base_layer.weight` and the adapter in
`q_proj.lora_A.default.weight` [rank, in] and `q_proj.lora_B.default.weight` [out, rank]; it computes with
W + (alpha / rank) B A. Written for peft 0.21.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from museg_ray.config.learning import LoraConfig
from museg_ray.errors import ConfigError, ModelError

_ADAPTED = r".*\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
"""Modules with adapters: the linear layers of the language model's blocks, of Qwen2.5-VL and Qwen3-VL."""
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
"""What peft puts into parameter names."""
MERGED_ROWS = 1024
"""Rows of a layer that are merged at once."""
T = TypeVar("T")


def add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Give the language model adapters that train, and freeze its own weights, embeddings and output head.

    Vision tower and mergers train or not as before. At first all B are zero, so that the model computes as its base;
    A is drawn from torch's global generator. Adapters have the dtype of the layers' weights: DeepSpeed shards and
    reduces parameters of one dtype together, and its optimiser has float32 copies of them in any case.

    Args:
        model: a `...ForConditionalGeneration`, changed in place.
        config: rank at least 1.

    Raises:
        ConfigError: the rank is above that of a layer.
    """
    assert config.rank > 0, "without a rank there are no adapters"
    _check_rank(model, config.rank)
    vision = [weight for weight in model.get_submodule("model.visual").parameters() if weight.requires_grad]
    peft_config = PeftConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=_ADAPTED)
    inject_adapter_in_model(peft_config, model)
    for weight in vision:  # peft has frozen all but the adapters
        weight.requires_grad_(True)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as its base, and without gradients: gradient checkpointing would compute anew in the
    backward pass, when the adapters are on again."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert layers, "the model has no adapters"
    # Not by peft's enable_adapters(): that also turns off requires_grad, which an optimiser's hooks rely on.
    for layer in layers:
        layer._disable_adapters = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def plain_layers(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, tuple[T, ...]]]:
    """Each weight of the plain model under its name there: by itself, or W [out, in] with its adapter's A [rank, in]
    and B [out, rank].

    Args:
        named: of a model with or without adapters, in the order of `named_parameters()`. Taken one at a time.
    """
    layer: list[T] = []  # W, A of the layer whose B is still to come
    for name, tensor in named:
        if name.endswith(_BASE + "weight"):
            assert not layer, f"no adapter before {name}"
            layer = [tensor]
        elif name.endswith(_A):
            layer.append(tensor)
        elif name.endswith(_B):
            yield name.replace(_B, ".weight"), (*layer, tensor)
            layer = []
        else:
            yield name.replace(_BASE, "."), (tensor,)
    assert not layer, "the last adapter is not whole"


def merged_weights(
    named_tensors: Iterable[tuple[str, torch.Tensor]], config: LoraConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain model's weights, adapters merged: computed in float32, in the dtype of W again.

    Args:
        named_tensors: of a model with adapters, in the order of `named_parameters()`, on any device. Taken one at a
            time: at most one layer's W, A and B are held.

    Returns:
        Hugging Face's names, as `named_parameters()` of a model without adapters yields them.
    """
    for name, (weight, *adapter) in plain_layers(named_tensors):
        yield name, _merge(weight, adapter[0], adapter[1], config) if adapter else weight


def merged_slice(held: torch.Tensor, start: int, a: torch.Tensor, b: torch.Tensor, config: LoraConfig) -> torch.Tensor:
    """A slice [n] of W + (alpha / rank) B A, flat: that of `held`, W's own from element `start` on.

    Invariant: an element's bits do not depend on the slice that it is in, so that all ranks and checkpoints merge the
    same. Therefore B A is computed in blocks of the same rows always: of other shapes it may be rounded otherwise.
    """
    width, result = a.shape[1], torch.empty_like(held)
    block = MERGED_ROWS * width
    for first in range(start // block * block, start + len(held), block):
        product = (b[first // width : first // width + MERGED_ROWS].float() @ a.float()).flatten()
        begin, end = max(start, first), min(start + len(held), first + len(product))
        added = product[begin - first : end - first] * (config.alpha / config.rank)
        result[begin - start : end - start] = (held[begin - start : end - start].float() + added).to(held.dtype)
    return result


def merge_adapters(
    base: Iterable[tuple[str, torch.Tensor]], trained: Mapping[str, torch.Tensor], config: LoraConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain model's weights out of a checkpoint, bit for bit those that `merged_weights` gives the learner.

    Args:
        base: weights of the model folder in the policy's dtype, by Hugging Face's names; taken one at a time.
        trained: what the checkpoint has, in float32: adapters by their names, and other trained weights by their own.

    Raises:
        ModelError: `trained` has weights that the base has no place for.
    """
    placed: set[str] = set()
    yield from merged_weights(_with_adapters(base, trained, placed), config)
    if unplaced := sorted(trained.keys() - placed):
        raise ModelError(
            f"the checkpoint has {len(unplaced)} weights that do not belong to the model folder's model, {unplaced[0]} "
            "among them; set model.path to the model that the run started from."
        )


def _with_adapters(
    base: Iterable[tuple[str, torch.Tensor]], trained: Mapping[str, torch.Tensor], placed: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """What a model with adapters has, in its order; notes in `placed` the trained weights that were used. Those are
    rounded to the dtype that the policy computes with."""
    for name, weight in base:
        layer = name.removesuffix(".weight")
        if layer + _A in trained:
            yield f"{layer}{_BASE}weight", weight
            names = [layer + _A, layer + _B]
        elif name in trained:
            names = [name]
        else:
            yield name, weight
            continue
        placed.update(names)
        yield from ((trained_name, trained[trained_name].to(weight.dtype)) for trained_name in names)


def _merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, config: LoraConfig) -> torch.Tensor:
    return merged_slice(weight.flatten(), 0, a, b, config).view_as(weight)


def _check_rank(model: nn.Module, rank: int) -> None:
    layers = {name: layer for name, layer in model.named_modules() if re.fullmatch(_ADAPTED, name)}
    assert layers, "the language model's layers have other names"
    limit, name = min((min(layer.in_features, layer.out_features), name) for name, layer in layers.items())
    if rank > limit:
        raise ConfigError(
            f"learner.lora.rank is {rank}, but {name} has only {limit} inputs or outputs; set it to at most {limit}, "
            "or to 0 to train all weights."
        )
