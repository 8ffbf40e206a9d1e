"""`museg bench video` on a small video; the whole of it takes minutes."""

from pathlib import Path

import pytest

from museg_ray.bench.apart import Round, compare_ways
from museg_ray.bench.video import STORE, TOUCH, make_targets, measure_round
from museg_ray.bench.videos import BenchVideo
from museg_ray.video.probe import probe

SMALL = BenchVideo("small", 60, 160, 96)


@pytest.fixture(scope="module")
def small_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def measured(small_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Round:
    pytest.importorskip("qwen_vl_utils")
    folder = tmp_path_factory.mktemp("stores")
    warm_up = folder / "warm_up.mp4"
    warm_up.write_bytes(small_video.read_bytes() + b"\0")  # the same film as another file
    return measure_round(small_video, warm_up)


def test_a_video_repeats_its_first_30_seconds_without_a_gap(small_video: Path) -> None:
    probed = probe(str(small_video))
    assert (len(probed.starts_s), probed.duration_s) == (1800, 60.0)


def test_both_ways_see_the_same_frames_and_tokens(measured: Round) -> None:
    assert measured[STORE]["tokens"] == measured["qwen-vl-utils"]["tokens"] > 0
    assert measured[TOUCH]["grey_levels"] < 1
    assert measured[TOUCH]["later_s"] < measured[STORE]["seconds"]


def test_every_way_has_a_row_and_every_promise_a_target(measured: Round) -> None:
    rows, targets = compare_ways("small", ("seconds", "tokens_seen"), [measured]), make_targets("small", [measured])
    assert [row["measured"] for row in rows] == [
        "seconds: to the store / qwen-vl-utils",
        "tokens_seen: to the store / qwen-vl-utils",
        "seconds: through decord / qwen-vl-utils",
        "tokens_seen: through decord / qwen-vl-utils",
    ]
    speed = measured["qwen-vl-utils"]["seconds"] / measured[STORE]["seconds"]
    assert targets[0].value == pytest.approx(speed) and targets[0].met == (speed >= 2)
