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


def test_a_submitted_job_trains_and_shows_its_metrics(
    head: Head, repository: Path, run_environment: dict[str, str], short_overrides: list[str], tmp_path: Path
) -> None:
    entrypoint = ["museg", "train", "-c", "configs/demo.yaml", f"run.dir={tmp_path}", "run.name=job", *short_overrides]
    job = subprocess.Popen(
        ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *entrypoint],
        env=run_environment,
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: set[str] = set()
    deadline_s = time.monotonic() + JOB_TIMEOUT_S
    while job.poll() is None and time.monotonic() < deadline_s:
        exported = _read(head.metrics)
        seen |= {gauge for gauge in GAUGES if f"{gauge}{{" in exported and 'run="job"' in exported}
        time.sleep(0.5)
    printed = job.communicate(timeout=10)[0]
    assert job.returncode == 0, printed[-3000:]
    assert json.loads((tmp_path / "job" / "summary.json").read_text())["steps"] == 2
    assert seen == set(GAUGES)
