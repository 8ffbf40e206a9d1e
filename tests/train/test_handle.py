"""A person's hold on a running job: its page, its crews scaled while it trains, its end with a checkpoint."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from museg_ray.append_log import read_rows
from museg_ray.checkpoints.folder import list_checkpoints, verify
from museg_ray.ledger.ledger import read_ledger

Start = Callable[..., subprocess.Popen[str]]
WAIT_S = 240
LONG = "train.phases=[{name: long, steps: 1000, prompt: 'Find {question}.'}]"


def kill_mailbox_of(driver_pid: int) -> None:
    (mailbox,) = [each for each in psutil.Process(driver_pid).children(recursive=True) if "Mailbox" in each.name()]
    mailbox.kill()
    mailbox.wait()


def check_books(folder: Path) -> None:
    """Of a run that was scaled from one to three actors and back, and stopped."""
    steps = [row["step"] for row in read_rows(folder / "metrics.jsonl")]
    assert steps == list(range(1, steps[-1] + 1))
    ledger = read_ledger(folder / "ledger.jsonl")
    assert all(row.outcome == "trained" for row in ledger if row.step <= steps[-1]), "nothing dropped"
    assert len({row.issue_id for row in ledger}) == len(ledger) >= 2 * len(steps), "nothing repeated"
    *_, last = list_checkpoints(folder / "checkpoints")
    verify(last)
    assert last.step == steps[-1]
    assert not (folder / "control.json").exists()
    kinds = [event["kind"] for event in read_rows(folder / "events.jsonl")]
    assert kinds.count("leave") == 2 and "loss" not in kinds


@pytest.mark.timeout(600)
def test_a_run_is_watched_scaled_and_stopped_from_another_process(
    start_museg: Start,
    museg: str,
    run_environment: dict[str, str],
    short_overrides: list[str],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    process = start_museg("demo", "--run-dir", str(folder), *short_overrides, LONG, "rollout.num_actors=1")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [museg, *arguments], env=run_environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    def ask(*arguments: str) -> str:
        done = command(*arguments)
        assert done.returncode == 0, (done.stderr, (folder / "control.json").exists() or process.communicate()[0])
        return done.stdout

    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(ask("status", str(folder), "--json"))
        return found

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline_s, "it did not come to that"
            time.sleep(0.5)

    def serving() -> list[str]:
        return [m["name"] for m in status()["crews"]["rollout"]["members"] if m["state"] == "serving"]

    wait_for(lambda: (folder / "metrics.jsonl").exists())
    page = ask("status", str(folder))
    assert "of 1000" in page and "rollout: 1 of 1 serve" in page and "rollout-0" in page
    assert "rollout: 3 wanted, 1 before. Each reserves 0.5 CPU: there is room." in ask(
        "scale", str(folder), "--rollout", "3"
    )
    wait_for(lambda: len(serving()) == 3)
    step = status()["step"]
    wait_for(lambda: status()["step"] >= step + 2)
    kill_mailbox_of(process.pid)  # the run needs it for nothing
    wait_for(lambda: command("status", str(folder)).returncode == 0)
    assert "finish what they have and leave" in ask("scale", str(folder), "--rollout", "1")
    wait_for(lambda: len(status()["crews"]["rollout"]["members"]) == 1)
    assert "with a checkpoint" in ask("stop", str(folder))
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0 and "The run was stopped" in printed, printed
    check_books(folder)


def test_a_run_that_is_not_there_is_refused_with_what_is(
    museg: str, run_environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [museg, "scale", "nowhere"], env=run_environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "at least one of --rollout" in done.stderr
