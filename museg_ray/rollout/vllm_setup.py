"""How vLLM is started: its process environment and its engine arguments, with the reason of each.

Written for vLLM 0.32. It is imported inside functions: the driver imports this module too, and vLLM takes 7 s.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from museg_ray.config.schema import ModelConfig, RolloutConfig
from museg_ray.errors import ModelError
from museg_ray.fleet.scratch import name_semaphores
from museg_ray.model.qwen_vl import VisionSpec, forbidden_token_ids, load_tokenizer, load_vision_spec, vocab_size

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

PROMPTS_PER_STEP = 4
"""Prompts of full length that one engine step may prefill."""
CLIP_EXTRA_BYTES = 64 * 1024
"""What a clip takes beside its pixels: its grid and its rate; far more than they need."""
GIB = 1024**3
MAX_BIASED_TOKENS = 1024
"""Of a request on a GPU: vLLM's MAX_NUM_LOGIT_BIAS_TOKENS (v1/worker/gpu/sample/logit_bias.py); more end its worker."""


def check_forbidden_tokens(model_dir: Path, rollout: RolloutConfig) -> None:
    """
    Raises:
        ModelError: an engine on a GPU could not keep all tokens out of responses that may not be in them.
    """
    tokenizer, num_rows = load_tokenizer(model_dir), vocab_size(model_dir)
    num_forbidden = len(forbidden_token_ids(tokenizer, num_rows))
    if rollout.num_gpus and (excess := num_forbidden - MAX_BIASED_TOKENS) > 0:
        raise ModelError(
            f"{num_forbidden} tokens may not be in a response, {num_rows - len(tokenizer)} of them rows of the output "
            f"head without a token; on a GPU vLLM takes {MAX_BIASED_TOKENS}. Cut the head of {model_dir} by {excess} "
            "rows (resize_token_embeddings of transformers)."
        )


def engine_environment(rollout: RolloutConfig) -> dict[str, str]:
    """Environment variables of an engine's process, to be set before vLLM is imported there."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        # An engine's processes are on one machine: where else they would meet on all its addresses.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        # Frames out of Ray's object store are read-only; vLLM only reads them.
        "PYTHONWARNINGS": "ignore:The given NumPy array is not writable:UserWarning",
    }
    if rollout.enforce_eager:
        # The sampler compiles a function on its first request even in eager mode: 19 s on two cores.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    if rollout.num_gpus == 0:
        # Ray leaves GPUs visible to actors that reserve none. Waiting threads must not spin: engines share cores.
        # oneDNN keeps a kernel for each of the last 1,024 shapes, a third of a MiB each, and torch what it has prepared
        # for as many. An engine that sees clips and groups of all sizes grew by 0.95 MiB a step for hundreds of steps.
        environment |= {
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_WAIT_POLICY": "PASSIVE",
            "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
            "LRU_CACHE_CAPACITY": "32",
        }
    if rollout.num_threads:
        environment["OMP_NUM_THREADS"] = str(rollout.num_threads)
    return environment


def start_vllm(model_dir: Path, model: ModelConfig, rollout: RolloutConfig, **other_args: Any) -> "AsyncLLM":
    """Start an engine process and wait until it is up. To be called inside the event loop that will use it.

    Args:
        other_args: engine arguments to use instead of the ones chosen here.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    name_semaphores()
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args(model_dir, model, rollout) | other_args))


def clip_cache_bytes(spec: VisionSpec, max_tokens: int) -> int:
    """Room for any one clip that a prompt of `max_tokens` can hold. vLLM keeps such a cache on both sides."""
    patch_bytes = 3 * spec.temporal_patch_size * spec.patch_size**2  # uint8 RGB
    return max_tokens * spec.merge_size**2 * patch_bytes + CLIP_EXTRA_BYTES


def engine_args(model_dir: Path, model: ModelConfig, rollout: RolloutConfig) -> dict[str, Any]:
    """vLLM's engine arguments, but for those that are as vLLM has them."""
    from vllm.config import WeightTransferConfig

    return {
        "model": str(model_dir),
        "dtype": model.dtype,
        "max_model_len": model.max_tokens,
        "max_num_seqs": rollout.max_num_seqs,
        # vLLM also sizes its cache of video features, and what the tower may do in a step, by it: left to itself an
        # engine that is made as ours is takes 2,048 on any GPU, which is less than one of MUSEG's videos.
        "max_num_batched_tokens": max(PROMPTS_PER_STEP * model.max_tokens, rollout.max_num_seqs),
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        # Raw uint8 pixels cross to the engine process, a quarter of the bytes of normalised ones; the model normalises.
        "mm_device_do_normalize": True,
        # How the responses of a group share their pixels: see group_client.py. The type `shm` would send them once by
        # itself, but it takes a clip for read as soon as one of the group's G responses has read it: once it is full it
        # overwrites clips that others wait for, and the engine dies ("Data has been modified or is invalid").
        "mm_processor_cache_type": "lru",
        "mm_processor_cache_gb": clip_cache_bytes(load_vision_spec(model_dir), model.max_tokens) / GIB,
        # Log-probs of the distribution sampled from, that is after the bias on forbidden tokens and the temperature.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # the model folder's own would add end tokens and sampling defaults
        "enforce_eager": rollout.enforce_eager,
        "weight_transfer_config": WeightTransferConfig(backend="museg_file"),
        "worker_extension_cls": "museg_ray.weights.vllm_backend.WeightFileExtension",
        "disable_log_stats": True,
        **_device_args(rollout),
    }


def _device_args(rollout: RolloutConfig) -> dict[str, Any]:
    if rollout.num_gpus:
        num_shards = max(1, int(rollout.num_gpus))
        return {
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            "tensor_parallel_size": num_shards,
            # vLLM's choice for several shards inside a placement group is Ray, whose workers would ask for GPUs beside
            # those of the actor.
            "distributed_executor_backend": "mp" if num_shards > 1 else "uni",
        }
    return {
        # Whole prompts only. On a CPU a seeded request dies ("CPU Generator does not use offset") when its prompt is
        # prefilled in chunks; and any prompt may be, not only a long one, when it is the last that fits into a step.
        # On a GPU vLLM warns of wrong results without chunks.
        "enable_chunked_prefill": False,
        # An explicit size also spares the warm-up that vLLM would size the cache by.
        "kv_cache_memory_bytes": int(rollout.kv_cache_gib * GIB),
        # vLLM's choice on a CPU is a worker process beside the engine process. It imports everything once more (8 s)
        # and keeps a fifth of a core busy while idle, and it binds the engines of one machine to the same core.
        "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
    }
