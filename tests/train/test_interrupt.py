"""Ctrl-C and mistakes: what ends, what stays, what is said."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

Start = Callable[..., subprocess.Popen[str]]
WAIT_S = 300


def _all_processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_run_leaves_no_process_behind(
    number: signal.Signals, start_museg: Start, museg: str, tmp_path: Path, short_overrides: list[str]
) -> None:
    long_run = ["train.phases=[{name: long, steps: 1000, prompt: 'Find {question}.'}]", "rollout.num_actors=1"]
    process = start_museg("demo", "--run-dir", str(tmp_path / "run"), *short_overrides, *long_run)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline_s = time.monotonic() + WAIT_S
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.2)
    family = _all_processes_of(process)
    assert any("raylet" in member.name() for member in family) and any("VLLM" in member.name() for member in family)
    page = subprocess.run([museg, "status", str(tmp_path / "run")], capture_output=True, text=True, check=False).stdout
    assert "of 1000" in page and "rollout: 1 of 1 serve" in page
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # a terminal sends Ctrl-C to the whole group
    else:
        process.send_signal(number)
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, printed
    assert "Interrupted" in printed and "Traceback" not in printed
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rollout.num_actor=3"], "Did you mean 'num_actors'"),
        (["model.path=/nowhere/model"], "/nowhere/model does not exist"),
        (["data.synthetic.num_train_videos=0", "data.train=missing.jsonl"], "missing.jsonl"),
        (["data.synthetic.dir=/proc/corpus"], "/proc/corpus"),
    ],
    ids=["unknown-key", "no-model", "no-annotations", "no-disk"],
)
def test_a_mistake_ends_with_one_line_and_no_traceback(
    arguments: list[str], says: str, start_museg: Start, tmp_path: Path, tiny_model_dir: Path
) -> None:
    base = [f"model.path={tiny_model_dir}", f"data.synthetic.dir={tmp_path}", "data.synthetic.num_train_videos=2"]
    process = start_museg("demo", "--run-dir", str(tmp_path / "run"), *base, *arguments)
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1, printed
    assert says in printed and "error:" in printed and "Traceback" not in printed
