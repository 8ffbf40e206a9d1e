"""A real run, with vLLM, DeepSpeed and Ray, that is killed by SIGKILL and resumed by the same command."""

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from museg_ray.checkpoints.folder import list_checkpoints
from tests.train.pictures import books
from tests.train.whole_run import WHOLE_RUN

Start = Callable[..., subprocess.Popen[str]]
WAIT_S = 300
GONE_S = 30
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's two small helpers outlive a raylet that was killed by a minute: they try to tell the dead GCS for so long."""


def _wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        if list_checkpoints(folder / "checkpoints"):
            return
        assert process.poll() is None, process.communicate(timeout=WAIT_S)[0]
        time.sleep(0.05)
    pytest.fail("no checkpoint")


def _kill(process: subprocess.Popen[str]) -> None:
    """The driver, by SIGKILL; nothing of the run may live on but Ray's agents."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    bystanders = [member.pid for member in family if member.name() in RAYS_AGENTS]
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs([member for member in family if member.pid not in bystanders], timeout=GONE_S)
    assert [member for member in alive if member.is_running() and member.status() != psutil.STATUS_ZOMBIE] == []


def _weights(folder: Path) -> list[bytes]:
    *_, last = list_checkpoints(folder / "checkpoints")
    return [path.read_bytes() for path in sorted(last.learner_dir.glob("*.safetensors"))]


@pytest.mark.timeout(900)
def test_a_run_that_was_killed_gives_the_numbers_of_one_that_was_not(
    start_museg: Start, tmp_path: Path, short_overrides: list[str], whole_run: tuple[Path, str]
) -> None:
    whole, killed = whole_run[0], tmp_path / "killed"

    def start() -> subprocess.Popen[str]:
        return start_museg("demo", "--run-dir", str(killed), *short_overrides, *WHOLE_RUN)

    process = start()
    _wait_for_checkpoint(killed, process)
    time.sleep(random.uniform(0.0, 1.0))
    _kill(process)
    process = start()
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, printed
    assert books(killed) == books(whole), printed
    assert _weights(killed) == _weights(whole)
    resumed_at = json.loads((killed / "summary.json").read_text())["resumed_at_steps"]
    assert len(resumed_at) == 1 and resumed_at[0] <= 4
