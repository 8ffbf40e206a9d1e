"""The recipe of the packaged model, a few steps long."""

from pathlib import Path

import numpy as np
import pytest
import torch

from museg_ray.cli.train import demo_config_path
from museg_ray.config.load import MODEL_CONFIG_FILE, load_config
from museg_ray.config.schema import SyntheticConfig
from museg_ray.model.qwen_vl import load_policy, load_tokenizer
from museg_ray.types import Segment
from scripts import warm_start
from scripts.warm_start import Course, careless_segments, rebuild_tiny_model

TRUTH: tuple[Segment, ...] = ((1.0, 2.0), (4.0, 6.0))


def test_the_careless_annotator_names_the_first_of_several_as_often_as_the_course_says() -> None:
    rng = np.random.default_rng(0)
    course = Course(1, 1e-3, num_scan_steps=0, first_only_probability=0.6)
    noted = [careless_segments(rng, course, TRUTH) for _ in range(2000)]
    assert all(segments in (TRUTH, TRUTH[:1]) for segments in noted)
    assert np.mean([len(segments) == 1 for segments in noted]) == pytest.approx(0.6, abs=0.04)


def test_a_rebuilt_model_replaces_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    courses = (Course(2, 1e-3, num_scan_steps=1, first_only_probability=0.0), Course(1, 1e-3, 0, 0.6))
    monkeypatch.setattr(warm_start, "COURSES", courses)
    corpus = SyntheticConfig(dir=str(tmp_path / "corpus"), num_train_videos=2, num_heldout_videos=0, seed=1)
    monkeypatch.setattr(warm_start, "CORPUS", corpus)
    out_dir = tmp_path / "models" / "museg-tiny"
    out_dir.mkdir(parents=True)
    (out_dir / "stale").touch()
    config = load_config(demo_config_path())
    rebuild_tiny_model(config, out_dir)
    assert load_tokenizer(out_dir).encode("the red circle")
    assert all(tensor.isfinite().all() for tensor in load_policy(out_dir, torch.float32).parameters())
    assert load_config(out_dir / MODEL_CONFIG_FILE) == config
    assert not (out_dir / "stale").exists()
    assert [path.name for path in out_dir.parent.iterdir()] == ["museg-tiny"]
