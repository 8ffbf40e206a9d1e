"""The learner behind Ray: clips by handle, weights by reference, errors as they were raised."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import LearnerError, ModelError, VideoError, VideoFault
from museg_ray.files import described
from museg_ray.learner.actor import LearnerHandle, _environment
from museg_ray.metrics import names
from museg_ray.types import Clip, Group
from museg_ray.video.loader import ClipHandle
from museg_ray.weights.channel import WritePlace
from museg_ray.weights.host import WeightHost
from museg_ray.weights.tensors import read_weights


@ray.remote(num_cpus=0)
class Gone:
    """A preparation actor that cannot read its video any more."""

    def send(self, video: str) -> Clip:
        raise VideoError(f"{video} is not there", VideoFault.MISSING)


async def written(learner: LearnerHandle) -> dict[str, torch.Tensor]:
    """What its ranks write together."""
    host, (node, other) = WeightHost(), await learner.nodes()
    assert node == other
    host.reserve(await learner.weight_layout())
    file = host.begin(0, 0.0)
    await learner.write_weights(0, [WritePlace(file, index, 2) for index in range(2)])
    host.commit(0)
    weights = {name: weight.clone() for name, weight in read_weights(file)}
    host.close()
    return weights


def test_updates_weights_and_checkpoints_through_the_actors(
    ray_local: None,
    config: Config,
    tiny_model_dir: Path,
    make_group: Callable[..., Group],
    stored_clip: tuple[ClipHandle, str],
    tmp_path: Path,
) -> None:
    """Two of them: one is what the whole runs of tests/train have."""
    config.learner.num_threads, config.learner.num_ranks = 1, 2
    config.learner.num_cpus = 0.5
    handle, config.video.store_dir = stored_clip
    clips = {handle.prepared.key: handle}

    async def run() -> None:
        learner = LearnerHandle(config, tiny_model_dir)
        try:
            await learner.ready()
            before = await written(learner)
            group = make_group([[40, 41], [50]], [1.0, -1.0])
            assert max(await learner.gaps(group, clips)) < 1e-5
            assert (await learner.update([group], clips, 1))[names.PARITY_GAP_MAX] < 1e-5
            absent = replace(handle, prepared=replace(handle.prepared, key="0" * 64), origin=Gone.remote())
            with pytest.raises(VideoError, match="is not there"):  # and no rank is left in the middle of an update
                await learner.update([group], {handle.prepared.key: absent}, 2)
            after = await written(learner)
            assert before.keys() == after.keys()
            assert not any(torch.equal(weight, after[name]) for name, weight in before.items())
            await learner.start_phase(PhaseConfig(name="next", fresh_optimizer=True, fresh_reference=True))
            await learner.export_model(tmp_path / "model")
            assert (tmp_path / "model" / "model.safetensors").is_file()
            (tmp_path / "learner").mkdir()
            await learner.begin_checkpoint(tmp_path / "learner")
            await learner.update([group], clips, 2)  # while the ranks write
            hashed = await learner.finish_checkpoint()
            shards = list((tmp_path / "learner").glob("shard-*.safetensors"))
            assert hashed == {shard.name: described(shard) for shard in shards} and len(shards) == 2
            await learner.begin_checkpoint(tmp_path / "absent")
            with pytest.raises(LearnerError, match=r"rank \d could not write into .*absent"):
                await learner.finish_checkpoint()
            group.advantages[0] = np.nan
            for step in (3, 4):
                assert (await learner.update([group], clips, step))[names.LEARNER_SKIPPED] == 1
            with pytest.raises(LearnerError, match=r"last 3 updates, up to step 5"):
                await learner.update([group], clips, 5)
        finally:
            await learner.close()
        resumed = LearnerHandle(config, tiny_model_dir, tmp_path / "learner")
        try:
            await resumed.ready()
            assert all(torch.equal(weight, after[name]) for name, weight in (await written(resumed)).items())
        finally:
            await resumed.close()

    asyncio.run(run())


def test_memory_of_a_gpu_is_taken_in_segments_that_can_grow_and_a_cpu_hides_gpus(config: Config) -> None:
    config.learner.num_gpus = 1.0
    assert _environment(config.learner) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    config.learner.num_gpus = 0.0
    assert _environment(config.learner)["CUDA_VISIBLE_DEVICES"] == ""
    assert "PYTORCH_ALLOC_CONF" not in _environment(config.learner)


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
