"""What a user does on a cluster: `ray job submit` against a head node started by hand, watched on its metrics port."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from museg_ray.append_log import read_rows
from museg_ray.checkpoints.folder import list_checkpoints, verify
from tests.whole_ledger import read_ledger

WAIT_S = 300.0
LONG = ("train.phases=[{name: long, steps: 1000, prompt: 'Find {question}.'}]", "rollout.num_actors=1")
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
    pid: int
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
        yield Head(process.pid, f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics")
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


def kill_mailbox_of(head: Head) -> None:
    """Of the one run there."""
    (mailbox,) = [each for each in psutil.Process(head.pid).children(recursive=True) if "Mailbox" in each.name()]
    mailbox.kill()
    mailbox.wait()


def check_books(folder: Path) -> None:
    """Of a run that was scaled from one to two actors and back, and stopped."""
    steps = [row["step"] for row in read_rows(folder / "metrics.jsonl")]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] < 1000
    ledger = read_ledger(folder / "ledger.jsonl")
    assert all(row.outcome == "trained" for row in ledger if row.step <= steps[-1]), "nothing dropped"
    assert len({row.issue_id for row in ledger}) == len(ledger) >= 2 * len(steps), "nothing repeated"
    *_, last = list_checkpoints(folder / "checkpoints")
    verify(last)
    assert last.step == steps[-1]
    assert not (folder / "control.json").exists()
    kinds = [event["kind"] for event in read_rows(folder / "events.jsonl")]
    assert kinds.count("leave") == 1 and "loss" not in kinds


class Person:
    """Holds a run by commands: `ask` on a machine of its cluster, `ask_from_outside` by the Jobs address alone."""

    def __init__(self, head: Head, job: "subprocess.Popen[str]", environment: dict[str, str], cwd: Path) -> None:
        self._head, self._job, self._environment, self._cwd = head, job, environment, cwd

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["museg", *arguments], env=self._environment, cwd=self._cwd, capture_output=True, text=True, timeout=180
        )

    def ask(self, *arguments: str) -> str:
        done = self.run(*arguments)
        if done.returncode:
            self.wait_for(lambda: False, 20)  # a run that has failed says why
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask_from_outside(self, *arguments: str) -> str:
        return self.ask(*arguments, "--address", self._head.dashboard)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("status", str(self._cwd / "job"), "--json"))
        return found

    def members(self, state: str = "serving") -> list[str]:
        return [each["name"] for each in self.status()["crews"]["rollout"]["members"] if each["state"] == state]

    def heard(self, kind: str) -> int:
        """How many events of a kind the rollout crew has had: a look at a file, where a status takes seconds."""
        told = {"role": "rollout", "kind": kind}.items()
        return sum(told <= event.items() for event in read_rows(self._cwd / "job" / "events.jsonl"))

    def step(self) -> int:
        *_, last = read_rows(self._cwd / "job" / "metrics.jsonl")
        return int(last["step"])

    def wait_for(self, condition: Callable[[], bool], limit_s: float = WAIT_S) -> bool:
        """Whether it has come about."""
        deadline_s = time.monotonic() + limit_s
        while not condition():
            assert self._job.poll() is None, self._job.communicate()[0][-5000:]
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.5)
        return True


@pytest.mark.timeout(900)
def test_a_submitted_job_shows_its_metrics_and_is_watched_scaled_and_stopped(
    head: Head, repository: Path, run_environment: dict[str, str], short_overrides: list[str], tmp_path: Path
) -> None:
    entrypoint = ["museg", "train", "-c", "configs/demo.yaml", f"run.dir={tmp_path}", "run.name=job", *short_overrides]
    job = subprocess.Popen(
        ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *entrypoint, *LONG],
        env=run_environment,
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    person, folder, seen = Person(head, job, run_environment, tmp_path), str(tmp_path / "job"), set[str]()

    def has_all_gauges() -> bool:
        exported = _read(head.metrics)
        seen.update(gauge for gauge in GAUGES if f"{gauge}{{" in exported and 'run="job"' in exported)
        return seen == set(GAUGES)

    assert person.wait_for(has_all_gauges), set(GAUGES) - seen
    page = person.ask("status", folder)
    assert "of 1000" in page and "rollout: 1 of 1 serve" in page and "rollout-0" in page
    answer = person.ask("scale", folder, "--rollout", "2")
    assert "rollout: 2 wanted, 1 before. Each reserves 0.5 CPU: there is room." in answer
    assert person.wait_for(lambda: person.heard("join") == 2)
    step = person.step()
    assert person.wait_for(lambda: person.step() >= step + 2)
    assert person.wait_for(lambda: len(person.members()) == 2)
    kill_mailbox_of(head)  # the run needs it for nothing
    assert person.wait_for(lambda: person.run("status", folder).returncode == 0)
    status = json.loads(person.ask_from_outside("status", "job", "--json"))
    assert status["phase"] == "long" and status["step"] >= step + 2
    assert "finish what they have and leave" in person.ask_from_outside("scale", "job", "--rollout", "1")
    assert person.wait_for(lambda: person.heard("leave") == 1 and len(person.members()) == 1)
    assert "with a checkpoint" in person.ask_from_outside("stop", "job")
    printed = job.communicate(timeout=WAIT_S)[0]
    assert job.returncode == 0 and "The run was stopped" in printed, printed[-3000:]
    check_books(tmp_path / "job")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["status", "."], r"The run in \. has ended"),
        (["scale", "nowhere"], "at least one of --rollout"),
        (["scale", "nowhere", "--rollout", "0"], "--rollout is 0; a crew needs at least 1"),
    ],
)
def test_a_command_that_asks_for_nothing_is_refused(
    words: list[str], says: str, run_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "events.jsonl").touch()
    done = subprocess.run(
        ["museg", *words], env=run_environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and re.search(says, done.stderr), done.stderr
