"""`museg ground` in a process of its own, with the packaged model and a rendered video."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from museg_ray.demo.corpus import encode_video
from museg_ray.demo.scene import draw_scene
from museg_ray.evaluation.metrics import segment_f1

TIMEOUT_S = 300


def museg_ground(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("museg")), "ground", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.mark.parametrize("form", ["json", "text"])
def test_it_answers_from_the_video_and_prints_nothing_else(form: str, tmp_path: Path) -> None:
    scene = draw_scene(np.random.default_rng(1))
    shown = scene.objects[0]
    video, plot = tmp_path / "shapes [1].mp4", tmp_path / "answer.png"  # a name that looks like markup
    encode_video(scene, video)
    options = ["--json"] if form == "json" else ["--plot", str(plot)]
    printed = museg_ground(str(video), shown.event, "--model", "museg-tiny", *options)
    assert (printed.returncode, printed.stderr) == (0, "")
    if form == "text":
        assert video.name in printed.stdout and "reasoning:" in printed.stdout
        assert plot.stat().st_size > 0
        return
    answer = json.loads(printed.stdout)
    segments = [(start_s, end_s) for start_s, end_s in answer["segments"]]
    assert segment_f1(segments, shown.segments) > 0, (answer, shown.segments)
    assert (answer["video"], answer["duration_s"]) == (str(video), scene.duration_s)
    assert "<answer>" in answer["response"] and "<answer>" not in answer["reasoning"]


def test_a_video_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    printed = museg_ground(str(tmp_path / "none.mp4"), "the red circle is visible", "--model", "museg-tiny")
    assert printed.returncode == 1
    assert "none.mp4" in printed.stderr + printed.stdout and "Traceback" not in printed.stderr
