"""`museg bench video` on a small video; the whole of it takes minutes."""

from pathlib import Path

import pytest

from museg_ray.bench.video import Facts, _round, _rows, _targets
from museg_ray.bench.videos import BenchVideo
from museg_ray.video.probe import probe

SMALL = BenchVideo("small", 60, 160, 96)


@pytest.fixture(scope="module")
def small_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def measured(small_video: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Facts]:
    pytest.importorskip("qwen_vl_utils")
    folder = tmp_path_factory.mktemp("stores")
    warm_up = folder / "warm_up.mp4"
    warm_up.write_bytes(small_video.read_bytes() + b"\0")  # the same film as another file
    return _round(small_video, warm_up, folder / "store")


def test_a_video_repeats_its_first_30_seconds_without_a_gap(small_video: Path) -> None:
    probed = probe(str(small_video))
    assert (len(probed.starts_s), probed.duration_s) == (1800, 60.0)


def test_both_ways_see_the_same_frames_and_tokens(measured: dict[str, Facts]) -> None:
    assert measured["store"]["tokens"] == measured["qwen_vl_utils"]["tokens"] > 0
    assert measured["touch"]["grey_levels"] < 1
    assert measured["touch"]["later_s"] < measured["store"]["seconds"]


def test_every_way_has_a_row_and_every_promise_a_target(measured: dict[str, Facts]) -> None:
    rows, targets = _rows("small", [measured]), _targets("small", [measured])
    assert [row["way"] for row in rows][:2] == ["qwen-vl-utils", "ours, to the store"]
    assert len({tuple(row) for row in rows}) == 1, "a table needs the same columns in all rows"
    speed = measured["qwen_vl_utils"]["seconds"] / measured["store"]["seconds"]
    assert targets[0].value == pytest.approx(speed) and targets[0].met == (speed >= 2)
