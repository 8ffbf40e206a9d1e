"""What a user does on a cluster: `ray job submit` against a head node started by hand, watched on its metrics port."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from museg_ray.checkpoints.folder import list_checkpoints

JOB_TIMEOUT_S = 600
GAUGES = (
    "ray_museg_reward_total",
    "ray_museg_reward_matching",
    "ray_museg_rollout_responses_per_s",
    "ray_museg_queue_rollout",
    "ray_museg_weights_version",
    "ray_museg_parity_gap_mean",
)


@dataclass(frozen=True)
class Head:
    dashboard: str
    metrics: str


@pytest.fixture
def head(run_environment: dict[str, str], free_port: Callable[[], int], tmp_path: Path) -> Iterator[Head]:
    """A head node on free ports. Ended by its own process: `ray stop` would end every Ray of the machine."""
    port, dashboard, metrics, agent, client = (free_port() for _ in range(5))
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}"]
    # Fixed numbers by default, which another Ray of this machine may hold.
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    process = subprocess.Popen(
        command, env=run_environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/api/version")
        _wait_for(f"http://127.0.0.1:{metrics}/metrics")
        yield Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def _wait_for(url: str) -> None:
    deadline_s = time.monotonic() + 120
    while True:
        try:
            _read(url)
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            assert time.monotonic() < deadline_s, f"{url} did not answer"
            time.sleep(0.5)


def test_a_submitted_job_shows_its_metrics_and_is_watched_and_stopped_through_the_jobs_address(
    head: Head, repository: Path, run_environment: dict[str, str], short_overrides: list[str], tmp_path: Path
) -> None:
    def from_outside(*command: str) -> str:
        """A command that knows the run's name and the Jobs address alone."""
        words = ["museg", *command, "--address", head.dashboard]
        ended = subprocess.run(words, env=run_environment, cwd=tmp_path, capture_output=True, text=True, timeout=180)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    entrypoint = ["museg", "train", "-c", "configs/demo.yaml", f"run.dir={tmp_path}", "run.name=job", *short_overrides]
    long_phase = "train.phases=[{name: long, steps: 1000, prompt: 'Find {question}.'}]"
    job = subprocess.Popen(
        ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *entrypoint, long_phase],
        env=run_environment,
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: set[str] = set()
    deadline_s = time.monotonic() + JOB_TIMEOUT_S
    while job.poll() is None and seen != set(GAUGES) and time.monotonic() < deadline_s:
        exported = _read(head.metrics)
        seen |= {gauge for gauge in GAUGES if f"{gauge}{{" in exported and 'run="job"' in exported}
        time.sleep(0.5)
    assert seen == set(GAUGES)
    status = json.loads(from_outside("status", "job", "--json"))
    assert (
        status["phase"] == "long"
        and len(status["crews"]["rollout"]["members"]) == status["crews"]["rollout"]["num_wanted"]
    )
    assert "with a checkpoint" in from_outside("stop", "job")
    printed = job.communicate(timeout=120)[0]
    assert job.returncode == 0 and "The run was stopped" in printed, printed[-3000:]
    num_steps = len((tmp_path / "job" / "metrics.jsonl").read_text().splitlines())
    assert list_checkpoints(tmp_path / "job" / "checkpoints")[-1].step == num_steps < 1000
