"""Runs inside vLLM's worker process: weights arrive as a file that it maps, see `Layout`.

Importing this module registers the backend `museg_file` with vLLM; the import happens in the worker because
`worker_extension_cls` names `WeightFileExtension`. Written for vLLM 0.32. None of vLLM's own backends works on a CPU.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from museg_ray.weights.layout import Part, part_of
from museg_ray.weights.tensors import frozen_parts, read_weights, weight_shapes

BACKEND = "museg_file"


class WeightFileExtension:
    """Mixed into vLLM's worker class; adds nothing, its import registers the backend in the worker's process."""


@dataclass
class WeightFileInit(WeightTransferInitInfo):
    """A file needs no connection."""


@dataclass
class WeightFileUpdate(WeightTransferUpdateInfo):
    path: str
    """Every weight of the parts that are not frozen, tied ones once. Nobody fills it anew meanwhile."""


class WeightFileEngine(WeightTransferEngine[WeightFileInit, WeightFileUpdate]):
    """Replaces weights in place by vLLM's layerwise reload, which keeps what kernels and graphs point to."""

    init_info_cls = WeightFileInit
    update_info_cls = WeightFileUpdate

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._shapes = weight_shapes_of(vllm_config.model_config.hf_config)

    def init_transfer_engine(self, init_info: WeightFileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        """Nothing: which layers to reload is known once the file is there."""

    def receive_weights(self, update_info: WeightFileUpdate) -> None:
        """Raises ValueError, before any weight is touched, when the file is not what it says it is.

        vLLM itself only logs that a layer got nothing, and fills one that got a part (`q_proj` and `v_proj` without
        `k_proj`) with what lies in memory.
        """
        path = Path(update_info.path)
        frozen = frozen_parts(path)
        wanted = {name: shape for name, shape in self._shapes.items() if part_of(name) not in frozen}
        check_weights(weight_shapes(path), wanted)
        # Frozen layers are left out, since vLLM would warn of each that got no weights.
        layers = torch.nn.ModuleList(layers_to_reload(self.model, frozen))
        initialize_layerwise_reload(layers)
        try:
            self.model.load_weights(read_weights(path))
        finally:  # else a later update would add to what this one has half loaded
            finalize_layerwise_reload(layers, self.model_config)
        repack_output_head(self.model)

    def finish_weight_update(self) -> None:
        """Nothing: a file is a whole update."""

    def shutdown(self) -> None:
        pass


def weight_shapes_of(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights as Hugging Face has them. vLLM's own names cannot tell that a weight is
    missing where it joins several into one."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def check_weights(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError when names or shapes differ."""
    if missing := [name for name in wanted if name not in given]:
        raise ValueError(f"the file lacks {len(missing)} of {len(wanted)} weights, {missing[0]} among them")
    if unknown := [name for name in given if name not in wanted]:
        raise ValueError(f"the file has {len(unknown)} weights that do not belong in it, {unknown[0]} among them")
    for name, shape in wanted.items():
        if given[name] != shape:
            raise ValueError(f"the file has {name} in shape {given[name]}, the model in {shape}")


def layers_to_reload(model: torch.nn.Module, frozen: Collection[Part], prefix: str = "") -> Iterator[torch.nn.Module]:
    """The largest modules of `model` without weights of frozen parts."""
    is_frozen = {part_of(prefix + name) in frozen for name, _ in model.named_parameters()}
    if is_frozen == {False}:
        yield model
    elif True in is_frozen and False in is_frozen:
        for name, child in model.named_children():
            yield from layers_to_reload(child, frozen, f"{prefix}{name}.")


def repack_output_head(model: torch.nn.Module) -> None:
    """Pack the output head's weights for the CPU kernel again.

    With tied embeddings vLLM's reload loads the embedding and repacks that alone; the head goes on multiplying by its
    old packed copy, and every log-prob is wrong while all weight checksums are right. Only layers that keep their
    plain weights beside the packed ones (embedding and head) can be packed again; the others did it while loading.
    """
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and isinstance(weight, torch.Tensor) and weight.numel() > 0:
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


WeightTransferEngineFactory.register_engine(BACKEND, WeightFileEngine)
