"""M-RoPE positions and prompts equal those that vLLM's own processor and model compute."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import pytest
import torch

from museg_ray.model.patchify import video_grid
from museg_ray.model.positions import completion_positions, prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import VisionSpec, load_tokenizer, load_vision_spec

CLIPS = [
    # frames, height, width, seconds; the rates include ones whose interval is not exact in binary
    (24, 56, 56, 12.0),
    (4, 28, 28, 1.37),
    (6, 56, 84, 2.1),
    (20, 28, 56, 7.0),
    (40, 84, 28, 35.7),
    (448, 28, 28, 400.3),
]


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the two positions a second of the real Qwen2.5-VL."""
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("positions") / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["tokens_per_second"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def spec(model_dir: Path) -> VisionSpec:
    return load_vision_spec(model_dir)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The engine's dtype."""
    return request.param


@pytest.fixture(scope="module")
def vllm_rule(dtype: torch.dtype, model_dir: Path) -> Callable[..., tuple[list[int], torch.Tensor, int]]:
    """vLLM's processing of one video prompt without an engine: (prompt ids, positions, position delta)."""
    from vllm.config import ModelConfig
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    model_config = ModelConfig(model=str(model_dir), dtype=dtype, limit_mm_per_prompt={"video": 1})
    processor = MULTIMODAL_REGISTRY.create_processor(model_config)
    model = Qwen2_5_VLForConditionalGeneration.__new__(Qwen2_5_VLForConditionalGeneration)
    object.__setattr__(model, "config", model_config.hf_config)  # all that the position rule reads

    def process(prompt_ids: list[int], frames: np.ndarray, duration_s: float) -> tuple[list[int], torch.Tensor, int]:
        num_frames = len(frames)
        metadata = {
            "fps": num_frames / duration_s,
            "total_num_frames": num_frames,
            "duration": duration_s,
            "frames_indices": list(range(num_frames)),
            "video_backend": "museg",
            "do_sample_frames": False,
        }
        items = processor.info.parse_mm_data({"video": [(frames, metadata)]})
        kwargs = {"do_resize": False, "do_sample_frames": False}
        processed = processor(prompt_ids, items, hf_processor_mm_kwargs=kwargs)
        place, data = processed["mm_placeholders"]["video"][0], processed["mm_kwargs"]["video"][0]
        feature = MultiModalFeatureSpec(data=data, modality="video", identifier="clip", mm_position=place)
        ids = list(processed["prompt_token_ids"])
        positions, delta = model.get_mrope_input_positions(ids, [feature])
        return ids, positions, delta

    return process


@pytest.mark.parametrize(("num_frames", "height", "width", "duration_s"), CLIPS)
@pytest.mark.parametrize("question", ["When?", "First a longer text, then 12.30 to 15.00, then the question. " * 4])
def test_prompt_and_positions_equal_those_of_vllm(
    vllm_rule: Callable[..., tuple[list[int], torch.Tensor, int]],
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
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    grid = video_grid(frames, spec)
    prompt_ids = chat_prompt_ids(tokenizer, question)
    expected_ids, expected, delta = vllm_rule(prompt_ids, frames, duration_s)

    ids = expand_video(prompt_ids, spec.num_video_tokens(grid), spec)
    interval_s = seconds_per_grid(num_frames / duration_s, spec, dtype)
    positions = prompt_positions(ids, grid, interval_s, spec)
    assert ids == expected_ids
    assert torch.equal(positions, expected)
    # The engine places completion token k at prompt length + k + delta.
    assert torch.equal(completion_positions(positions, 5)[0], torch.arange(5) + len(ids) + delta)


def test_text_after_a_video_starts_at_the_largest_position_plus_one(spec: VisionSpec) -> None:
    ids = [5, spec.video_token_id, spec.video_token_id, 6]
    positions = prompt_positions(ids, (2, 2, 2), 3.0, spec)  # two tokens, 3 s apart, 2 positions a second
    assert positions.tolist() == [[0, 1, 7, 8], [0, 1, 1, 8], [0, 1, 1, 8]]


def test_two_videos_or_a_wrong_count_of_placeholders_are_our_bug(spec: VisionSpec) -> None:
    video = spec.video_token_id
    with pytest.raises(AssertionError, match="placeholders for a video"):
        prompt_positions([5, video, 6], (2, 2, 2), 1.0, spec)
    with pytest.raises(AssertionError, match="contiguous"):
        prompt_positions([video, 5, video], (2, 2, 2), 1.0, spec)
