"""The driver's version, asked of a library that is compiled here in the place of NVIDIA's."""

import asyncio
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from museg_ray.config.learning import LearnerConfig
from museg_ray.config.schema import Config, RolloutConfig
from museg_ray.errors import ResourceError
from museg_ray.fleet.gpu_driver import check_gpu_driver
from museg_ray.learner import actor as learner_actor
from museg_ray.learner.rank import Rank
from museg_ray.rollout import actor as rollout_actor


@pytest.fixture
def driver(tmp_path: Path) -> Callable[[int], str]:
    def compiled(version: int) -> str:
        source, library = tmp_path / "cuda.c", tmp_path / f"libcuda-{version}.so"
        source.write_text(f"int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}")
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
        return str(library)

    return compiled


@pytest.mark.parametrize("version", [13000, 13020, 14000])
def test_a_driver_that_is_new_enough_passes(driver: Callable[[int], str], version: int) -> None:
    check_gpu_driver(driver(version))


def test_a_driver_that_is_too_old_is_one_error_that_names_both_versions(driver: Callable[[int], str]) -> None:
    with pytest.raises(ResourceError, match=r"supports CUDA 12\.8; .* need CUDA 13\.0\. Install driver 580 or newer"):
        check_gpu_driver(driver(12080))


def test_a_machine_without_a_driver_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="is not there, or not seen by this process"):
        check_gpu_driver(str(tmp_path / "libcuda.so.1"))


def test_ranks_and_engines_on_gpus_look_at_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = partial(check_gpu_driver, str(tmp_path / "libcuda.so.1"))
    for module in (learner_actor, rollout_actor):
        monkeypatch.setattr(module, "check_gpu_driver", missing)
    config = Config(rollout=RolloutConfig(num_gpus=1.0), learner=LearnerConfig(num_gpus=1.0))
    with pytest.raises(ResourceError, match="driver"):
        learner_actor.LearnerActor().start(config, tmp_path, Rank(), None)
    with pytest.raises(ResourceError, match="driver"):
        asyncio.run(rollout_actor.RolloutActor(tmp_path, config).start())
