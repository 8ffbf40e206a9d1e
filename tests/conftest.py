"""Fixtures that several rooms share. Ray and the tiny model are started once a session."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else a local Ray writes a token under the home folder
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from museg_ray.types import Clip
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.video.store import FrameStore

# No wall-clock limits: the machine may be busy with the rest of the suite.
settings.register_profile("museg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("museg")


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
    from museg_ray.data.synthetic.language import tokenizer_texts
    from museg_ray.model.tiny import build_model, build_tokenizer, save_tiny_model

    folder = tmp_path_factory.mktemp("model") / "museg-tiny-random"
    tokenizer = build_tokenizer(tokenizer_texts())
    save_tiny_model(build_model(tokenizer, seed=0), tokenizer, folder)
    return folder


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
def shared_dir() -> Path:
    """The folder `shared` beside the repository, with golden cases and schemas; its tests skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder
