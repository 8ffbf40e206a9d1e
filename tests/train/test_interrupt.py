"""Ctrl-C and mistakes: what ends, what stays, what is said."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from museg_ray.cli.main import main

Start = Callable[..., subprocess.Popen[str]]
WAIT_S = 300


LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
LONG = ["train.phases=[{name: long, steps: 1000, prompt: 'Find {question}.'}]", "rollout.num_actors=1"]


def _all_processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def _names(process: subprocess.Popen[str]) -> str:
    return " ".join(member.name() for member in _all_processes_of(process))


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.1)


def _listens_beyond_loopback(process: psutil.Process) -> list[str]:
    waiting = [socket for socket in process.net_connections(kind="inet") if not socket.raddr]
    return [f"{process.name()} {socket.laddr}" for socket in waiting if socket.laddr.ip not in LOOPBACK]


@pytest.fixture
def temporary(run_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where what the test starts puts temporary files. Short: the path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.setitem(run_environment, "TMPDIR", folder)
        yield Path(folder)


def _left_in(temporary: Path) -> list[Path]:
    """All but torch's compile cache, which is the user's: all programs share it, and its place is always the same."""
    return [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


def _check_end(process: subprocess.Popen[str], number: signal.Signals, family: list[psutil.Process]) -> None:
    printed, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 128 + number, printed
    assert printed.endswith("Interrupted: all processes that it started have ended.\n") and "Traceback" not in printed
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_a_run_keeps_to_itself_and_leaves_nothing_behind_on_sigterm(
    start_museg: Start, museg: str, tmp_path: Path, temporary: Path, short_overrides: list[str]
) -> None:
    process = start_museg("demo", "--run-dir", str(tmp_path / "run"), *short_overrides, *LONG)
    _wait_for((tmp_path / "run" / "metrics.jsonl").exists, process)
    family = _all_processes_of(process)
    assert "raylet" in _names(process) and "VLLM" in _names(process)
    assert [found for member in family for found in _listens_beyond_loopback(member)] == []
    (private,) = _left_in(temporary)
    assert private.stat().st_mode & 0o777 == 0o700 and (private / "token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "run" / "control.json").stat().st_mode & 0o777 == 0o600
    page = subprocess.run([museg, "status", str(tmp_path / "run")], capture_output=True, text=True, check=False).stdout
    assert "of 1000" in page and "rollout: 1 of 1 serve" in page
    process.send_signal(signal.SIGTERM)
    _check_end(process, signal.SIGTERM, family)
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert _left_in(temporary) == [] and list(Path("/dev/shm").glob(f"*{private.name}*")) == []


def test_ctrl_c_while_ray_starts_ends_it(
    start_museg: Start, tmp_path: Path, temporary: Path, short_overrides: list[str]
) -> None:
    process = start_museg("demo", "--run-dir", str(tmp_path / "run"), *short_overrides, *LONG)
    _wait_for(lambda: "gcs_server" in _names(process), process)
    family = _all_processes_of(process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends Ctrl-C to the whole group
    _check_end(process, signal.SIGINT, family)
    assert _left_in(temporary) == []


MISTAKES = {
    "unknown-key": (["rollout.num_actor=3"], "Did you mean 'num_actors'"),
    "no-model": (["model.path=/nowhere/model"], "/nowhere/model does not exist"),
    "no-annotations": (["data.synthetic.num_train_videos=0", "data.train=missing.jsonl"], "missing.jsonl"),
    "no-disk": (["data.synthetic.dir=/proc/corpus"], "/proc/corpus"),
}
"""What is typed, and what its one line says."""


def _mistake(name: str, folder: Path, model_dir: Path) -> list[str]:
    base = [f"model.path={model_dir}", f"data.synthetic.dir={folder}", "data.synthetic.num_train_videos=2"]
    return ["demo", "--run-dir", str(folder / "run"), *base, *MISTAKES[name][0]]


def _check_line(name: str, code: object, printed: str) -> None:
    assert code == 1, printed
    assert MISTAKES[name][1] in printed and "error:" in printed and "Traceback" not in printed


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_line_and_no_traceback(
    name: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["museg", *_mistake(name, tmp_path, tiny_model_dir)])
    with pytest.raises(SystemExit) as end:
        main()
    _check_line(name, end.value.code, "".join(capfd.readouterr()))


def test_a_mistake_that_shows_last_ends_a_process_with_one_line_and_no_traceback(
    start_museg: Start, tmp_path: Path, tiny_model_dir: Path
) -> None:
    process = start_museg(*_mistake("no-annotations", tmp_path, tiny_model_dir))
    printed, _ = process.communicate(timeout=WAIT_S)
    _check_line("no-annotations", process.returncode, printed)
