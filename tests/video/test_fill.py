"""Many videos into the store, without Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.video import fill
from museg_ray.video.fill import prepare_all
from museg_ray.video.prepare import PreparedClip

Render = Callable[..., Path]


def test_every_video_is_told_of_once(render: Render, tmp_path: Path) -> None:
    good = [str(render(f"{name}.mp4", seconds=2)) for name in "ab"]
    bad = str(tmp_path / "absent.mp4")
    config = VideoConfig(store_dir=str(tmp_path / "store"), max_pixels=280 * 56)
    told = dict(prepare_all([*good, bad], config, 2, print))
    assert told.keys() == {*good, bad}
    assert isinstance(told[bad], VideoError)
    assert all(isinstance(told[video], PreparedClip) and told[video].video == video for video in good)


class Failing:
    """A reader with a fault of ours."""

    def __init__(self, config: VideoConfig, tell: object) -> None:
        pass

    def prepare(self, video: str) -> PreparedClip:
        raise ZeroDivisionError(video)

    def close(self) -> None:
        pass


@pytest.mark.timeout(20)
def test_an_unforeseen_error_comes_out_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "GuardedReader", Failing)
    with pytest.raises(ZeroDivisionError, match=r"a\.mp4"):
        list(prepare_all(["a.mp4", "b.mp4"], VideoConfig(), 1, print))
