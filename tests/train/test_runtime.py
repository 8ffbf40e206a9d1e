"""Ray for a run: a local one, and what fits on a cluster."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError

from museg_ray.config.learning import LearnerConfig
from museg_ray.config.schema import Config, RolloutConfig
from museg_ray.errors import ResourceError
from museg_ray.train.runtime import check_capacity


def test_a_cluster_that_is_too_small_is_refused_with_the_arithmetic() -> None:
    config = Config(rollout=RolloutConfig(num_actors=4, num_gpus=1), learner=LearnerConfig(num_gpus=2))
    with pytest.raises(ResourceError, match=r"reserves 6 GPUs \(4 rollout actors x 1 \+ 1 learner ranks x 2\).*has 4"):
        check_capacity(config, {"CPU": 64, "GPU": 4})


def test_a_cluster_that_is_large_enough_passes() -> None:
    check_capacity(Config(rollout=RolloutConfig(num_actors=4)), {"CPU": 64})


TOO_LATE = """
import sys, ray
from museg_ray.config.schema import Config
from museg_ray.train.runtime import ray_session
def too_late(**settings):
    raise Exception("The current node timed out during startup.")  # as Ray does
ray.init = too_late
with ray_session(Config()):
    pass
"""


@pytest.mark.parametrize("address", ["", "10.0.0.7:6379"])
def test_a_ray_that_does_not_start_is_one_error_and_leaves_nothing(address: str, tmp_path: Path) -> None:
    """In a process of its own: a local Ray ends all children of its driver."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_TMPDIR": str(tmp_path)} | ({"RAY_ADDRESS": address} if address else {})
    done = subprocess.run(
        [sys.executable, "-c", TOO_LATE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    said = f"ResourceError: Ray did not start on {address or 'this machine'}: The current node timed out"
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


SESSION = """
import time, ray
from museg_ray.ending import take_over
from museg_ray.fleet import local_ray
local_ray.FULL_BYTES, local_ray.LOOK_EVERY_S = 1 << 60, 0.01  # so that any disk is full
take_over()
with local_ray.local_ray(1):
    print(ray.get_runtime_context().gcs_address, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def session() -> "Iterator[tuple[subprocess.Popen[str], str]]":
    """A driver with a local Ray, and that Ray's address. The last test kills its raylet."""
    command = [sys.executable, "-c", SESSION]
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder,
        subprocess.Popen(
            command, env={**os.environ, "RAY_TMPDIR": folder}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as driver,
    ):
        assert driver.stdout is not None
        yield driver, driver.stdout.readline().strip()
        driver.terminate()


def test_a_connection_to_a_local_ray_without_its_token_is_refused(
    session: "tuple[subprocess.Popen[str], str]",
) -> None:
    with pytest.raises(AuthenticationError, match="token is missing or incorrect"):
        GcsClient(address=session[1])


def test_a_raylet_that_dies_ends_its_driver_with_one_error_that_says_how_to_go_on(
    session: "tuple[subprocess.Popen[str], str]",
) -> None:
    driver, _ = session
    (raylet,) = [child for child in psutil.Process(driver.pid).children() if child.name() == "raylet"]
    family = psutil.Process(driver.pid).children(recursive=True)
    raylet.kill()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "error: ResourceError: The raylet of this run's Ray has died (SIGKILL)" in said and "--resume" in said
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    warning, error = (line for line in said.splitlines() if "is full, where this run's Ray writes" in line)
    assert warning.startswith("warning: ") and error.startswith("error: "), "before its death, and with it"
