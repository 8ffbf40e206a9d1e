"""Runs inside vLLM's worker process: weights arrive as a safetensors file.

Importing this module registers the backend `museg_file` with vLLM; the import happens in the worker because
`worker_extension_cls` names `WeightFileExtension`. Written for vLLM 0.32. None of vLLM's own backends works on a CPU.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from vllm.config import VllmConfig, WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from museg_ray.weights.blob import read_weights

BACKEND = "museg_file"


class WeightFileExtension:
    """Mixed into vLLM's worker class; adds nothing, its import registers the backend in the worker's process."""


@dataclass
class WeightFileInit(WeightTransferInitInfo):
    """A file needs no connection."""


@dataclass
class WeightFileUpdate(WeightTransferUpdateInfo):
    path: str
    """A safetensors file with every weight of the model, tied ones once."""


class WeightFileEngine(WeightTransferEngine[WeightFileInit, WeightFileUpdate]):
    """Replaces all weights in place by vLLM's layerwise reload, which keeps what kernels and graphs point to."""

    init_info_cls = WeightFileInit
    update_info_cls = WeightFileUpdate

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        # Noted now, since during a reload tied weights are two.
        self._names = {name for name, _ in model.named_parameters()}

    def init_transfer_engine(self, init_info: WeightFileInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: WeightFileUpdate) -> None:
        """Raises ValueError when the file lacks a weight: vLLM would only log it and sample on with the old one."""
        loaded = self.model.load_weights(read_weights(Path(update_info.path)))
        if missing := sorted(self._names - loaded):
            raise ValueError(f"the file lacks {len(missing)} of {len(self._names)} weights, {missing[0]} among them")

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_output_head(self.model)

    def shutdown(self) -> None:
        pass


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
