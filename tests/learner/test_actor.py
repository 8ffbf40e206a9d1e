"""The learner behind Ray: clips by handle, weights by reference, errors as they were raised."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.torch import load

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import LearnerError, ModelError
from museg_ray.learner.actor import LearnerHandle
from museg_ray.metrics import names
from museg_ray.types import ScoredGroup
from museg_ray.video.loader import ClipHandle


def test_an_update_through_the_actor_moves_the_exported_weights(
    ray_local: None,
    config: Config,
    tiny_model_dir: Path,
    make_group: Callable[..., ScoredGroup],
    stored_clip: tuple[ClipHandle, str],
    tmp_path: Path,
) -> None:
    config.learner.num_threads = 1
    handle, config.video.store_dir = stored_clip

    async def run() -> None:
        learner = LearnerHandle(config, tiny_model_dir)
        try:
            await learner.ready()
            before = ray.get(await learner.export_weights())
            group = make_group([[40, 41], [50]], [1.0, -1.0])
            metrics = await learner.update([group], {handle.prepared.key: handle})
            after = ray.get(await learner.export_weights())
            assert metrics[names.PARITY_GAP_MAX] < 1e-5
            assert load(before.tobytes()).keys() == load(after.tobytes()).keys()
            assert not np.array_equal(before, after)
            await learner.start_phase(PhaseConfig(name="next", fresh_optimizer=True, fresh_reference=True))
            await learner.export_model(tmp_path / "model")
            assert (tmp_path / "model" / "model.safetensors").is_file()
            group.advantages[0] = np.nan
            with pytest.raises(LearnerError, match=r"^The loss of query test/0"):
                await learner.update([group], {handle.prepared.key: handle})
        finally:
            await learner.close()

    asyncio.run(run())


def test_a_folder_that_is_no_model_is_a_model_error_of_the_learner(
    ray_local: None, config: Config, tiny_model_dir: Path, tmp_path: Path
) -> None:
    for file in tiny_model_dir.iterdir():
        (tmp_path / file.name).write_bytes(b"broken" if file.suffix == ".safetensors" else file.read_bytes())

    async def run() -> None:
        learner = LearnerHandle(config, tmp_path)
        with pytest.raises(ModelError, match=f"weights in {tmp_path}"):
            await learner.ready()
        await learner.close()

    asyncio.run(run())
