"""Fixtures that several rooms share. Ray and the tiny model are started once a session."""

import gc
import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a local Ray writes a token under the home folder
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Threads of torch that wait must not spin: on a busy machine they keep the cores from those that they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each process of a run would compile the package anew, 4 s at worst
os.environ.setdefault("RAY_metrics_report_interval_ms", "1000")  # tests would wait for Ray's 10 s

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from museg_ray.types import Clip
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.video.store import FrameStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3VLConfig

# No wall-clock limits: the machine may be busy with the rest of the suite.
settings.register_profile("museg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("museg")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing that the test files import is garbage, and Python would look through it again and again: a third of the
    time of importing it, and a tenth of that of the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray with 4 logical CPUs, whatever the machine has."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight museg-tiny: the architecture and tokenizer of the packaged one, untrained."""
    from scripts.warm_start import build_model, save_tiny_model

    folder = tmp_path_factory.mktemp("model") / "museg-tiny-random"
    save_tiny_model(build_model(seed=0), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_qwen3_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Qwen3-VL of 0.7 M parameters with museg-tiny's tokenizer: DeepStack from two of four layers, tied
    embeddings, and the tokens `<think>` and `</think>` that the real one has."""
    import torch
    from transformers import (
        AddedToken,
        AutoTokenizer,
        Qwen2VLImageProcessor,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in ("<think>", "</think>")])
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64 * 64}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=tokenizer.chat_template,
    )
    folder = tmp_path_factory.mktemp("qwen3") / "qwen3-tiny-random"
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(_qwen3_config(tokenizer)).float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen3_config(tokenizer: "PreTrainedTokenizerBase") -> "Qwen3VLConfig":
    from transformers import Qwen3VLConfig

    ids = tokenizer.get_vocab()
    rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 10000.0}
    shared = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.06}
    text = {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    vision = {"depth": 4, "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 64}
    return Qwen3VLConfig(
        text_config={
            **shared,
            **text,
            "vocab_size": (len(tokenizer) + 63) // 64 * 64,
            "max_position_embeddings": 8192,
            "rope_parameters": rope,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={**shared, **vision, "deepstack_visual_indexes": [1, 2]},
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session", params=["qwen2_5_vl", "qwen3_vl"])
def family_dir(request: pytest.FixtureRequest, tiny_model_dir: Path, tiny_qwen3_dir: Path) -> Path:
    """The tiny model of each family in turn."""
    return {"qwen2_5_vl": tiny_model_dir, "qwen3_vl": tiny_qwen3_dir}[request.param]


@pytest.fixture(scope="session")
def clip() -> Clip:
    """12 s of a seeded random pattern: 24 frames of 56 x 56 at 2 a second."""
    frames = np.random.default_rng(0).integers(0, 256, size=(24, 56, 56, 3), dtype=np.uint8)
    times_s = np.arange(24, dtype=np.float32) / 2
    return Clip(key="test-clip", video="test.mp4", frames=frames, times_s=times_s, duration_s=12.0)


@pytest.fixture(scope="session")
def stored_clip(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipHandle, str]:
    """A handle of `clip`, and the folder of the frame store that has it. No actor stands behind it."""
    store_dir = tmp_path_factory.mktemp("frames")
    FrameStore(store_dir, limit_gib=1).put(clip)
    prepared = PreparedClip(clip.key, clip.video, clip.frames.shape, clip.duration_s, was_decoded=True)
    return ClipHandle(prepared, origin=None), str(store_dir)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Where `museg_ray` and `tests` can be imported from by a process of its own."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir(repository: Path) -> Path:
    """The folder `shared` beside the repository, with golden cases and schemas; its tests skip where it is absent."""
    folder = repository.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder
