"""What an engine is started with on a CPU and on GPUs: the arguments alone, no engine."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from vllm.config.scheduler import SchedulerConfig

from museg_ray.config.schema import ModelConfig, RolloutConfig
from museg_ray.errors import ModelError
from museg_ray.rollout.vllm_setup import MAX_BIASED_TOKENS, check_forbidden_tokens, engine_args


@pytest.mark.parametrize("num_gpus", [0.0, 1.0, 2.0])
def test_prompts_are_prefilled_whole_on_a_cpu_and_as_vllm_does_on_a_gpu(tiny_model_dir: Path, num_gpus: float) -> None:
    args = engine_args(tiny_model_dir, ModelConfig(max_tokens=8192), RolloutConfig(num_gpus=num_gpus))
    assert args.get("enable_chunked_prefill", "vLLM's own") == ("vLLM's own" if num_gpus else False)
    assert args["max_num_batched_tokens"] == 4 * 8192 > SchedulerConfig.DEFAULT_MAX_NUM_BATCHED_TOKENS


def test_shards_of_an_engine_are_its_own_processes_though_it_is_in_a_placement_group(tiny_model_dir: Path) -> None:
    backends = {
        num_gpus: engine_args(tiny_model_dir, ModelConfig(), RolloutConfig(num_gpus=num_gpus))
        for num_gpus in (1.0, 2.0, 4.0)
    }
    assert {n: args["distributed_executor_backend"] for n, args in backends.items()} == {1: "uni", 2: "mp", 4: "mp"}
    assert [args["tensor_parallel_size"] for args in backends.values()] == [1, 2, 4]


def test_as_many_tokens_may_be_forbidden_as_vllm_says() -> None:
    package = find_spec("vllm")
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent / "v1/worker/gpu/sample/logit_bias.py").read_text()
    assert re.findall(r"^MAX_NUM_LOGIT_BIAS_TOKENS = (\d+)$", source, re.MULTILINE) == [str(MAX_BIASED_TOKENS)]


def test_a_model_with_more_forbidden_tokens_than_a_gpu_engine_takes_is_refused(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    on_gpu, model_dir = RolloutConfig(num_gpus=1), tmp_path / "model"
    check_forbidden_tokens(tiny_model_dir, on_gpu)
    shutil.copytree(tiny_model_dir, model_dir)
    config = json.loads((model_dir / "config.json").read_text())
    config["text_config"]["vocab_size"] = 2048
    (model_dir / "config.json").write_text(json.dumps(config))
    check_forbidden_tokens(model_dir, RolloutConfig())
    with pytest.raises(ModelError, match=r"\d+ of them rows of the output head without a token; .* takes 1024\."):
        check_forbidden_tokens(model_dir, on_gpu)
