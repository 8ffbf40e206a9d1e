"""Every command that can be driven without an engine and without Ray, with text that attacks whoever looks at it."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from museg_ray.cli import data_prepare, ground, handle
from museg_ray.cli.main import main
from museg_ray.cli.train import demo_config_path
from museg_ray.errors import VideoError, VideoFault
from museg_ray.rewards.answer import parse_response
from museg_ray.terminal.console import SafeConsole
from museg_ray.types import Clip
from tests.hostile import HOSTILE, SURROGATE, assert_harmless, assert_no_command

Museg = Callable[..., str]


@pytest.fixture
def museg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Museg:
    """Runs the command as a process would; what it printed."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["museg", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            assert end.code in (0, 1, 2)
        printed = capsys.readouterr()
        return printed.out + printed.err

    return run


def row(**fields: object) -> str:
    whole = {"idx": 0, "problem": "q", "solution": [[1, 2]], "video": "v.mp4", "task": "tvg"}
    return json.dumps(whole | fields) + "\n"


def assert_one_error(printed: str) -> None:
    assert re.fullmatch(r"\n*error: .*\n", printed)  # before it may stand what is left of a progress bar
    assert_harmless(printed)


def test_the_path_of_a_configuration_in_an_error(museg: Museg) -> None:
    assert_one_error(museg("train", "--config", HOSTILE + SURROGATE))
    assert_one_error(museg("data", "prepare", "--config", f"a\n{HOSTILE}"))


def test_a_key_of_a_configuration_in_an_error(museg: Museg, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{json.dumps(HOSTILE)}: 3\n")
    assert_one_error(museg("train", "--config", tmp_path / "a.yaml"))


def test_an_override_in_an_error(museg: Museg) -> None:
    assert_one_error(museg("train", "--config", demo_config_path(), f"run.seed={HOSTILE}"))
    assert_one_error(museg("demo", f"run.seed={HOSTILE}"))


def test_folders_in_errors(museg: Museg) -> None:
    assert_one_error(museg("export", HOSTILE, "model"))
    assert_one_error(museg("ground", "a.mp4", "a question", "--model", HOSTILE))
    assert_one_error(museg("status", "run", "--address", f"http://{HOSTILE}"))


def test_a_video_in_an_error(museg: Museg) -> None:
    assert_one_error(museg("ground", HOSTILE, "a question", "--model", "museg-tiny"))


def test_a_question_that_is_not_utf8_is_refused(museg: Museg) -> None:
    assert "is not UTF-8 text" in museg("ground", "a.mp4", SURROGATE, "--model", "museg-tiny")


def test_an_option_that_does_not_exist(museg: Museg) -> None:
    printed = museg("ground", "--\x1b]0;owned\x07\x9b31m")
    assert "No such option" in printed and not {"\x1b", "\x07", "\x9b"} & set(printed)


def test_a_row_of_a_file_in_an_error(museg: Museg, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row(idx=HOSTILE) * 2)
    settings = [f"data.{key}={tmp_path}/a.jsonl" for key in ("train", "heldout")]
    settings += ["data.synthetic.num_train_videos=0", "data.multi_segment_share=0"]
    strict = ("--no-videos", "--rule", "repeated_id=error")
    assert_one_error(museg("data", "import", "museg", tmp_path / "a.jsonl", "--out", tmp_path, *strict))
    assert_one_error(museg("data", "prepare", "-c", demo_config_path(), *settings))
    (tmp_path / "a.jsonl").write_text(row(task=HOSTILE))
    printed = museg("data", "import", "museg", tmp_path / "a.jsonl", "--out", tmp_path, "--no-videos")
    assert_no_command(printed)
    assert r"field 'task' holds \"\u001b]0;owned" in printed.replace('"', r"\"")  # quoted as JSON


def test_reward_explain(museg: Museg) -> None:
    hostile = HOSTILE + SURROGATE
    truth = ("--ground-truth", "1-2")
    assert_harmless(museg("reward", "explain", *truth, "--question", hostile, "--response", hostile))
    assert_no_command(museg("reward", "explain", *truth, "--response", f"<think>a</think><answer>{hostile}</answer>"))
    assert_one_error(museg("reward", "explain", "--ground-truth", HOSTILE, "--response", "a"))
    phase = ("--config", demo_config_path(), "--phase", HOSTILE)
    assert_one_error(museg("reward", "explain", *truth, "--response", "a", *phase))


def test_reward_score(museg: Museg, tmp_path: Path) -> None:
    responses = tmp_path / "a.jsonl"
    responses.write_text(json.dumps({"response": HOSTILE, "ground_truth": [[1, 2]]}))
    assert_harmless(museg("reward", "score", responses, "--out", tmp_path / HOSTILE))
    assert_one_error(museg("reward", "score", HOSTILE, "--out", tmp_path / "b"))
    responses.write_text(json.dumps({"response": "a", "ground_truth": [HOSTILE]}))
    assert_no_command(museg("reward", "score", responses, "--out", tmp_path / "b"))


def test_data_import_and_inspect(museg: Museg, tmp_path: Path) -> None:
    folder, root = tmp_path / "out", f"{tmp_path}/{HOSTILE}"
    rows = [
        row(idx="a", video="\x1b]0;owned\u202e/v.mp4"),  # its folder is its source
        row(idx=f"b{HOSTILE}", solution=[[5, 3]], problem=HOSTILE),
        row(idx="c", solution=[[5, 5]], problem=SURROGATE),
        row(idx=f"b{HOSTILE}"),
    ]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    arguments = ("museg", tmp_path / "a.jsonl", "--out", folder, "--no-videos", "--video-root", root)
    assert_harmless(museg("data", "import", *arguments))
    printed = museg("data", "inspect", folder)
    assert_harmless(printed)
    assert r"\x1b]0;owned\u202e" in printed
    assert_harmless(museg("data", "inspect", folder, "--quarantined"))
    assert_one_error(museg("data", "inspect", folder, "--rule", HOSTILE))
    assert_one_error(museg("data", "import", HOSTILE, tmp_path / "a.jsonl", "--out", folder))


def test_unreadable_videos_of_data_prepare(capsys: pytest.CaptureFixture[str]) -> None:
    tally = data_prepare._Tally(unreadable={HOSTILE: VideoError(f"No {HOSTILE + SURROGATE}", VideoFault.MISSING)})
    data_prepare._print(SafeConsole(), tally, HOSTILE)
    assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize("response", [HOSTILE, f"<think>{HOSTILE}</think><answer>1-2</answer>"])
def test_an_answer_of_ground(response: str, clip: Clip, capsys: pytest.CaptureFixture[str]) -> None:
    clip = Clip("key", HOSTILE + SURROGATE, np.zeros_like(clip.frames), clip.times_s, clip.duration_s)
    ground._print(clip, f"a\n{HOSTILE}", f"{response}\n{SURROGATE}", parse_response(response), Path(HOSTILE))
    assert_harmless(capsys.readouterr().out)


def test_the_status_of_a_run(museg: Museg, monkeypatch: pytest.MonkeyPatch) -> None:
    member = {"name": HOSTILE, "state": HOSTILE, "age_s": 1.0, "num_jobs": 0}
    status = {
        **dict.fromkeys(("run", "folder", "driver", "phase", "waits"), f"{HOSTILE}\n{SURROGATE}"),
        **{"unix_s": time.time(), "step": 1, "total_steps": 2, "weight_version": 1, "max_staleness": 0},
        "crews": {"rollout": {"num_wanted": 1, "num_losses": 0, "members": [member]}},
        "queues": {HOSTILE: 1},
        "alarms": [HOSTILE],
        "events": [{"unix_s": 0.0, "text": HOSTILE}],
    }
    monkeypatch.setattr(handle, "_through_jobs", lambda address, command: json.dumps(status))
    assert_harmless(museg("status", "run", "--address", "http://head"))
    printed = museg("status", "run", "--address", "http://head", "--json")
    assert printed.strip().isascii() and printed.strip().isprintable() and json.loads(printed) == status
    monkeypatch.setattr(handle, "_through_jobs", lambda address, command: HOSTILE)
    assert_harmless(museg("scale", "run", "--rollout", 2, "--address", "http://head"))
    assert_harmless(museg("stop", "run", "--address", "http://head"))
