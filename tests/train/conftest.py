"""Whole runs in processes of their own: what a user starts, a few optimiser steps long."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.train.whole_run import WHOLE_RUN


@pytest.fixture(scope="session")
def museg() -> str:
    """The installed command."""
    return str(Path(sys.executable).with_name("museg"))


@pytest.fixture(scope="session")
def run_environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    bin_folder = str(Path(sys.executable).parent)
    return environment | {"RAY_AUTH_MODE": "disabled", "PATH": f"{bin_folder}{os.pathsep}{environment['PATH']}"}


@pytest.fixture(scope="session")
def short_overrides(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The demo with one step a phase, a handful of videos, and random weights."""
    return [
        f"model.path={tiny_model_dir}",
        f"data.synthetic.dir={tmp_path_factory.mktemp('corpus')}",
        "data.synthetic.num_train_videos=8",
        "data.synthetic.num_heldout_videos=4",
        "evaluation.num_queries=6",
        "evaluation.max_completion_tokens=24",
        "rollout.max_completion_tokens=24",
        "train.prompts_per_step=2",
        "rewards.num_actors=1",  # each takes a process, and its start
        "train.phases=[{name: timestamps, steps: 1, prompt: 'Find {question}. Cite times.', weights: {timestamp: 1}},"
        " {name: free, steps: 1, prompt: 'Find {question}.', fresh_reference: true}]",
    ]


RUN_TIMEOUT_S = 600


@pytest.fixture(scope="session")
def whole_run(
    tmp_path_factory: pytest.TempPathFactory, museg: str, run_environment: dict[str, str], short_overrides: list[str]
) -> tuple[Path, str]:
    """The folder of a run that nothing disturbed, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    printed = subprocess.run(
        [museg, "demo", "--run-dir", str(folder), *short_overrides, *WHOLE_RUN],
        env=run_environment,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert printed.returncode == 0, printed.stdout[-3000:] + printed.stderr[-3000:]
    return folder, printed.stdout


@pytest.fixture
def start_museg(
    museg: str, run_environment: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `museg ARGUMENTS` in a process group of its own, as a shell does; what is left of it is killed after."""
    started: list[subprocess.Popen[str]] = []
    # A shell that runs the tests in the background lets them ignore Ctrl-C, and programs inherit that.
    on_interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [museg, *arguments],
            cwd=tmp_path,
            env=run_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    signal.signal(signal.SIGINT, on_interrupt)
    for process in started:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                child.kill()
        process.communicate()


@pytest.fixture
def free_port() -> Callable[[], int]:
    return _free_port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
