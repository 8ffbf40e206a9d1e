"""Weights out of an engine that may hold a part of each on every rank, and into one."""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache

import deepspeed
import torch
from torch import nn

from museg_ray.config.learning import LearnerConfig
from museg_ray.learner.rank import Rank
from museg_ray.model.lora import merged_slice, merged_weights, plain_layers
from museg_ray.model.policy import PolicyModel
from museg_ray.weights.channel import WritePlace
from museg_ray.weights.layout import Layout, Part, part_of
from museg_ray.weights.spans import Span, merged
from museg_ray.weights.tensors import DTYPES, copy_bytes, mapped

NamedTensors = Iterator[tuple[str, torch.Tensor]]
STAGING_BYTES = 64 * 1024**2
"""Of each of the pinned buffers through which a GPU's weights go."""
NUM_BUFFERS = 2


class WeightWriter:
    """What one rank holds of the plain model's weights, and its way into a weights file.

    At ZeRO 3 a rank holds a slice of each and writes that: nothing is gathered but adapters, layer by layer. Else every
    rank holds all, and the ranks of a machine share them out.
    """

    def __init__(self, policy: nn.Module, config: LearnerConfig, rank: Rank, frozen: Collection[Part]) -> None:
        named = ((name, p) for name, p in _model(policy).named_parameters() if part_of(name) not in frozen)
        self._layers = dict(plain_layers(named))
        self._lora, self._rank = config.lora, rank
        shapes = {name: (DTYPES[p.dtype], _shape(p)) for name, (p, *_) in self._layers.items()}
        self.layout = Layout.of(shapes, frozen)

    @torch.no_grad()
    def write(self, place: WritePlace) -> list[Span]:
        """This rank's part, into the file of its machine; which bytes that is. All ranks together."""
        target, copy, spans = mapped(place.file), _Copy(), list[Span]()
        for name, (weight, *adapter) in self._layers.items():
            start, held = _held(weight, self._rank, place)
            if adapter:
                with _gathered(adapter):
                    held = merged_slice(held, start, adapter[0], adapter[1], self._lora)
            begin = self.layout.offsets[name] + start * held.element_size()
            spans.append((begin, begin + held.numel() * held.element_size()))
            copy(held.view(torch.uint8), target[slice(*spans[-1])])
        copy.finish()
        return merged(spans)


def _held(weight: nn.Parameter, rank: Rank, place: WritePlace) -> tuple[int, torch.Tensor]:
    """What this rank is to write of a weight, flat, and the element at which that begins. DeepSpeed pads the last of
    its partitions."""
    if not hasattr(weight, "ds_id"):
        begin, end = (weight.numel() * rank_end // place.num_ranks for rank_end in (place.rank, place.rank + 1))
        return begin, weight.detach().flatten()[begin:end]
    partition, num_elements = weight.ds_tensor.detach(), weight.ds_numel  # type: ignore[attr-defined]  # DeepSpeed's
    begin = min(rank.index * len(partition), num_elements)
    return begin, partition[: num_elements - begin]


class _Copy:
    """Bytes of any device into mapped memory; from a GPU through pinned buffers, one of which is filled while the other
    one is emptied."""

    def __init__(self) -> None:
        self._filled: deque[tuple[torch.cuda.Event, torch.Tensor, torch.Tensor]] = deque()
        self._count = 0

    def __call__(self, held: torch.Tensor, target: torch.Tensor) -> None:
        if held.device.type == "cpu":
            copy_bytes(held, target)
            return
        for piece, into in zip(held.split(STAGING_BYTES), target.split(STAGING_BYTES), strict=True):
            if len(self._filled) == NUM_BUFFERS:
                self._empty_one()
            buffer = _pinned_buffer(self._count % NUM_BUFFERS)[: len(piece)]
            buffer.copy_(piece, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._filled.append((event, buffer, into))
            self._count += 1

    def finish(self) -> None:
        while self._filled:
            self._empty_one()

    def _empty_one(self) -> None:
        event, buffer, into = self._filled.popleft()
        event.synchronize()
        copy_bytes(buffer, into)


@cache
def _pinned_buffer(index: int) -> torch.Tensor:
    return torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True)


def module_weights(policy: nn.Module, is_wanted: bool) -> NamedTensors:
    """Every parameter under its own name, whole, as a copy on the CPU. All ranks together, each to the end.

    Args:
        policy: a `PolicyModel` or DeepSpeed's engine around one.
        is_wanted: False on ranks that only help to gather; they get nothing.
    """
    for name, parameter in _model(policy).named_parameters():
        with _gathered([parameter]):
            # A copy, since a gathered parameter is emptied when the block ends.
            copy = parameter.detach().to("cpu", copy=True) if is_wanted else None
        if copy is not None:
            yield name, copy


def policy_weights(policy: nn.Module, learner: LearnerConfig, is_wanted: bool = True) -> NamedTensors:
    """As `module_weights`, under the names of the plain Hugging Face model: adapters are merged, tied weights come
    once."""
    weights = module_weights(policy, is_wanted)
    return merged_weights(weights, learner.lora) if learner.lora.rank else weights


def copy_weights(weights: Iterable[tuple[str, torch.Tensor]], target: nn.Module) -> None:
    """Copy weights into a frozen policy, whole or sharded. All ranks together, each with all the weights."""
    model = _model(target)
    for name, weight in weights:
        parameter = model.get_parameter(name)
        is_partitioned = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=is_partitioned), torch.no_grad():
            parameter.copy_(weight)


def _gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
    """Inside, all ranks have them whole."""
    is_partitioned = hasattr(parameters[0], "ds_id")
    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters, enabled=is_partitioned)
    return gathered


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """At ZeRO 3 the parameter itself is empty."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _model(policy: nn.Module) -> nn.Module:
    inner = policy.module if isinstance(policy, deepspeed.DeepSpeedEngine) else policy
    assert isinstance(inner, PolicyModel)
    return inner.model
