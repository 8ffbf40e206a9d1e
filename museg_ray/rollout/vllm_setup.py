"""How vLLM is started: its process environment and its engine arguments, with the reason of each.

Written for vLLM 0.32. vLLM is imported inside functions, since the driver needs `engine_environment` without the 7
seconds that the import takes.
"""

import shutil
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

from museg_ray.config.schema import ModelConfig, RolloutConfig
from museg_ray.weights.blob import SHARED_MEMORY_DIR

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

PROMPTS_PER_STEP = 4
"""Prompts of full length that one engine step may prefill."""
GIB = 1024**3
CLIP_CACHE_GIB = 1.0
"""Shared memory for the pixels of recent clips, at most: about 60 clips of MUSEG's size (16 MB)."""


def engine_environment(rollout: RolloutConfig) -> dict[str, str]:
    """Environment variables of an engine's process, to be set before vLLM is imported there."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        # Frames out of Ray's object store are read-only; vLLM only reads them.
        "PYTHONWARNINGS": "ignore:The given NumPy array is not writable:UserWarning",
    }
    if rollout.enforce_eager:
        # The sampler compiles a function on its first request even in eager mode: 19 s on two cores.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    if rollout.num_gpus == 0:
        # Ray leaves GPUs visible to actors that reserve none. Waiting threads must not spin: engines share cores.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}
    if rollout.num_threads:
        environment["OMP_NUM_THREADS"] = str(rollout.num_threads)
    return environment


def start_vllm(model_dir: Path, model: ModelConfig, rollout: RolloutConfig) -> "AsyncLLM":
    """Start an engine process and wait until it is up. To be called inside the event loop that will use it."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    device_args = _gpu_args(rollout) if rollout.num_gpus else _cpu_args(rollout)
    args = AsyncEngineArgs(**_common_args(model_dir, model, rollout), **device_args)
    llm = AsyncLLM.from_engine_args(args)
    _unname_clip_cache()
    return llm


def _unname_clip_cache() -> None:
    """Take its name from the clip cache, which both processes have mapped by now.

    The kernel then frees it with the last of them, however they end. vLLM removes it only in a clean shutdown: each
    killed actor would leave its share of the machine's memory behind.
    """
    from vllm import envs

    cache = SharedMemory(name=envs.VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME)
    cache.close()
    cache.unlink()


def _clip_cache_gib() -> float:
    """Containers often have little shared memory, and writing beyond it kills the process; clips that find no place
    in the cache are sent to the engine with each response's request."""
    free_gib = shutil.disk_usage(SHARED_MEMORY_DIR).free / GIB
    return min(CLIP_CACHE_GIB, free_gib / 4)


def _common_args(model_dir: Path, model: ModelConfig, rollout: RolloutConfig) -> dict[str, Any]:
    from vllm.config import WeightTransferConfig

    return {
        "model": str(model_dir),
        "dtype": model.dtype,
        "max_model_len": model.max_tokens,
        "max_num_seqs": rollout.max_num_seqs,
        # Whole prompts only. On a CPU a seeded request dies ("CPU Generator does not use offset") when its prompt is
        # prefilled in chunks; and any prompt may be, not only a long one, when it is the last that fits into a step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(PROMPTS_PER_STEP * model.max_tokens, rollout.max_num_seqs),
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        # vLLM's default cache sends a clip's pixels to the engine process once for each of the G responses.
        "mm_processor_cache_type": "shm",
        "mm_processor_cache_gb": _clip_cache_gib(),
        # Log-probs of the distribution sampled from, that is after the bias on forbidden tokens and the temperature.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # the model folder's own would add end tokens and sampling defaults
        "enforce_eager": rollout.enforce_eager,
        "weight_transfer_config": WeightTransferConfig(backend="museg_file"),
        "worker_extension_cls": "museg_ray.weights.vllm_backend.WeightFileExtension",
        "disable_log_stats": True,
    }


def _gpu_args(rollout: RolloutConfig) -> dict[str, Any]:
    return {
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "tensor_parallel_size": max(1, int(rollout.num_gpus)),
    }


def _cpu_args(rollout: RolloutConfig) -> dict[str, Any]:
    return {
        # An explicit size also spares the warm-up that vLLM would size the cache by.
        "kv_cache_memory_bytes": int(rollout.kv_cache_gib * GIB),
        # vLLM's choice on a CPU is a worker process beside the engine process. It imports everything once more (8 s)
        # and keeps a fifth of a core busy while idle, and it binds the engines of one machine to the same core.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    }
