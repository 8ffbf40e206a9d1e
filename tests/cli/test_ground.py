"""`museg ground` with the packaged model and a rendered video: once in a process of its own."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from museg_ray.cli import ground
from museg_ray.cli.main import main
from museg_ray.demo.corpus import encode_video
from museg_ray.demo.scene import Scene, draw_scene
from museg_ray.evaluation.metrics import segment_f1
from museg_ray.video.frames import choose_num_frames

TIMEOUT_S = 300


@dataclass(frozen=True)
class Asked:
    """The command with --json and --plot, and how it ended."""

    scene: Scene
    event: str
    video: Path
    plot: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder, scene = tmp_path_factory.mktemp("ground"), draw_scene(np.random.default_rng(1))
    event, video, plot = scene.objects[0].event, folder / "shapes [1].mp4", folder / "answer.png"  # looks like markup
    encode_video(scene, video)
    command = [str(Path(sys.executable).with_name("museg")), "ground", str(video), event, "--model", "museg-tiny"]
    command += ["--json", "--plot", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return Asked(scene, event, video, plot, done)


def test_it_answers_from_the_video_and_prints_nothing_but_json(asked: Asked) -> None:
    assert (asked.done.returncode, asked.done.stderr) == (0, "")
    answer = json.loads(asked.done.stdout)
    segments = [(start_s, end_s) for start_s, end_s in answer["segments"]]
    truth = asked.scene.objects[0].segments
    assert segment_f1(segments, truth) > 0, (answer, truth)
    assert (answer["video"], answer["duration_s"]) == (str(asked.video), asked.scene.duration_s)
    assert "<answer>" in answer["response"] and "<answer>" not in answer["reasoning"]
    assert asked.plot.stat().st_size > 0


def test_as_text_it_prints_video_segments_and_reasoning_and_nothing_else(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The answer is the one that the engine has given above."""
    given = json.loads(asked.done.stdout)

    async def answer(*_: Any) -> str:
        return str(given["response"])

    monkeypatch.setattr(ground, "_ask", answer)
    monkeypatch.setattr(sys, "argv", ["museg", "ground", str(asked.video), asked.event, "--model", "museg-tiny"])
    sys.argv += ["--plot", str(tmp_path / "answer.png")]
    with pytest.raises(SystemExit) as end:
        main()
    printed = capfd.readouterr()
    assert (end.value.code or 0, printed.err) == (0, "")
    assert asked.video.name in printed.out and "reasoning:" in printed.out
    assert all(f"{start_s:.2f} s – {end_s:.2f} s" in printed.out for start_s, end_s in given["segments"])
    assert (tmp_path / "answer.png").stat().st_size > 0


def test_a_video_that_is_not_there_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    question = "the red circle is visible"
    monkeypatch.setattr(sys, "argv", ["museg", "ground", str(tmp_path / "none.mp4"), question, "--model", "museg-tiny"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capfd.readouterr()
    assert end.value.code == 1
    assert "none.mp4" in printed.err and "Traceback" not in printed.err
    assert printed.out == "" and len(printed.err.splitlines()) == 1


def test_a_model_without_a_configuration_gets_one_that_fits_its_family(
    tiny_model_dir: Path, tiny_qwen3_dir: Path, tmp_path: Path
) -> None:
    qwen2, qwen3 = (ground._model_config(bare_copy(folder, tmp_path)) for folder in (tiny_model_dir, tiny_qwen3_dir))
    assert (qwen2.video.size_multiple, qwen2.video.pair_tokens) == (28, 0)
    assert (qwen3.video.size_multiple, qwen3.video.pair_tokens) == (32, 11)
    for config in (qwen2, qwen3):
        tokens = config.video.total_pixels / config.video.size_multiple**2
        assert config.model.max_tokens == tokens + ground.QUESTION_TOKENS + config.evaluation.max_completion_tokens
    assert qwen2.model.max_tokens == 4096, "museg-tiny's own limit"
    assert choose_num_frames(3600, 90_000, qwen3.video) < choose_num_frames(3600, 90_000, qwen2.video) == 448


def bare_copy(folder: Path, to: Path) -> Path:
    copy = Path(shutil.copytree(folder, to / folder.name))
    (copy / "museg_config.yaml").unlink(missing_ok=True)
    return copy
