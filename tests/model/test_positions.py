"""M-RoPE positions and prompts equal those that vLLM's own processor and model compute, for both families."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from museg_ray.model.patchify import video_grid
from museg_ray.model.positions import completion_positions, prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import VisionSpec, load_tokenizer, load_vision_spec
from museg_ray.rollout.engine import _vllm_prompt
from museg_ray.types import Clip
from tests.model.timed_prompt import expand_timed_video

VllmRule = Callable[[list[int], Clip], tuple[list[int], torch.Tensor, int]]
CLIPS = [
    # frames, height and width in tokens, seconds; the rates include ones whose interval is not exact in binary
    (24, 2, 2, 12.0),
    (4, 1, 1, 1.37),
    (6, 2, 3, 2.1),
    (20, 1, 2, 7.0),
    (40, 3, 1, 35.7),
    (448, 1, 1, 400.3),
]


@pytest.fixture(scope="module")
def model_dir(family_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with the two positions a second of the real Qwen2.5-VL."""
    folder = Path(shutil.copytree(family_dir, tmp_path_factory.mktemp("positions") / "model"))
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "qwen2_5_vl":
        config["vision_config"]["tokens_per_second"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def spec(model_dir: Path) -> VisionSpec:
    return load_vision_spec(model_dir)


@pytest.fixture(scope="module")
def qwen25_spec(tiny_model_dir: Path) -> VisionSpec:
    return replace(load_vision_spec(tiny_model_dir), tokens_per_second=2)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The engine's dtype."""
    return request.param


@pytest.fixture(scope="module")
def vllm_rule(dtype: torch.dtype, model_dir: Path, spec: VisionSpec) -> VllmRule:
    """vLLM's processing of one prompt of the engine's, without an engine: (prompt ids, positions, position delta)."""
    from vllm.config import ModelConfig
    from vllm.model_executor.models import ModelRegistry
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    model_config = ModelConfig(model=str(model_dir), dtype=dtype, limit_mm_per_prompt={"video": 1})
    processor = MULTIMODAL_REGISTRY.create_processor(model_config)
    model_class, _ = ModelRegistry.resolve_model_cls(model_config.architectures, model_config)
    model = model_class.__new__(model_class)
    object.__setattr__(model, "config", model_config.hf_config)  # all that the position rule reads

    def process(prompt_ids: list[int], clip: Clip) -> tuple[list[int], torch.Tensor, int]:
        prompt = _vllm_prompt(prompt_ids, clip, 0, 0, spec)
        items = processor.info.parse_mm_data(prompt["multi_modal_data"])
        kwargs = prompt["mm_processor_kwargs"]
        processed = processor(prompt["prompt_token_ids"], items, hf_processor_mm_kwargs=kwargs)
        place, data = processed["mm_placeholders"]["video"][0], processed["mm_kwargs"]["video"][0]
        feature = MultiModalFeatureSpec(data=data, modality="video", identifier="clip", mm_position=place)
        ids = list(processed["prompt_token_ids"])
        positions, delta = model.get_mrope_input_positions(ids, [feature])
        return ids, positions, delta

    return process


def expand(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], clip: Clip, spec: VisionSpec
) -> tuple[list[int], tuple[int, int, int]]:
    """The prompt as the learner gets it, and the video's grid."""
    grid = video_grid(clip.frames, spec)
    if spec.writes_times:
        return expand_timed_video(tokenizer, prompt_ids, grid, clip.times_s, spec), grid
    return expand_video(prompt_ids, spec.num_video_tokens(grid), spec), grid


@pytest.mark.parametrize(("num_frames", "height", "width", "duration_s"), CLIPS)
@pytest.mark.parametrize("question", ["When?", "First a longer text, then 12.30 to 15.00, then the question. " * 4])
def test_prompt_and_positions_equal_those_of_vllm(
    vllm_rule: VllmRule,
    dtype: torch.dtype,
    model_dir: Path,
    spec: VisionSpec,
    num_frames: int,
    height: int,
    width: int,
    duration_s: float,
    question: str,
) -> None:
    tokenizer = load_tokenizer(model_dir)
    frames = np.zeros((num_frames, height * spec.size_multiple, width * spec.size_multiple, 3), dtype=np.uint8)
    # As of a variable frame rate: no two neighbours are equally far apart.
    jitter_s = np.random.default_rng(0).uniform(0, 0.4 * duration_s / num_frames, num_frames)
    times_s = (np.arange(num_frames) * duration_s / num_frames + jitter_s).astype(np.float32)
    clip = Clip("clip", "test.mp4", frames, times_s, duration_s)
    prompt_ids = chat_prompt_ids(tokenizer, question)
    expected_ids, expected, delta = vllm_rule(prompt_ids, clip)

    ids, grid = expand(tokenizer, prompt_ids, clip, spec)
    positions = prompt_positions(ids, grid, seconds_per_grid(clip.sample_fps, spec, dtype), spec)
    assert ids == expected_ids
    assert torch.equal(positions, expected)
    # The engine places completion token k at prompt length + k + delta.
    assert torch.equal(completion_positions(positions, 5)[0], torch.arange(5) + len(ids) + delta)


def test_text_after_a_video_starts_at_the_largest_position_plus_one(qwen25_spec: VisionSpec) -> None:
    spec = qwen25_spec
    ids = [5, spec.video_token_id, spec.video_token_id, 6]
    positions = prompt_positions(ids, (2, 2, 2), 3.0, spec)  # two tokens, 3 s apart, 2 positions a second
    assert positions.tolist() == [[0, 1, 7, 8], [0, 1, 1, 8], [0, 1, 1, 8]]


def test_two_videos_or_a_wrong_count_of_placeholders_are_our_bug(qwen25_spec: VisionSpec) -> None:
    spec, video = qwen25_spec, qwen25_spec.video_token_id
    with pytest.raises(AssertionError, match="placeholders for a video"):
        prompt_positions([5, video, 6], (2, 2, 2), 1.0, spec)
    with pytest.raises(AssertionError, match="contiguous"):
        prompt_positions([video, 5, video], (2, 2, 2), 1.0, spec)


def test_each_temporal_patch_of_a_timed_prompt_is_a_block_of_its_own(tiny_qwen3_dir: Path) -> None:
    spec = load_vision_spec(tiny_qwen3_dir)
    video = spec.video_token_id
    ids = [5, video, video, 6, 7, video, video, 8]  # two steps of 1 x 2 tokens
    for interval_s in (0.5, 3.0):
        assert prompt_positions(ids, (2, 2, 4), interval_s, spec).tolist() == [
            [0, 1, 1, 3, 4, 5, 5, 7],
            [0, 1, 1, 3, 4, 5, 5, 7],
            [0, 1, 2, 3, 4, 5, 6, 7],
        ]
    with pytest.raises(AssertionError, match="contiguous"):
        prompt_positions([5, *[video] * 4, 8], (2, 2, 4), 0.5, spec)
