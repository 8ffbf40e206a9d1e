"""How pixels reach the process that needs them. A loader with a store of its own stands for another machine."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import MusegError, VideoError, VideoFault
from museg_ray.types import Clip
from museg_ray.video import actor as actor_module
from museg_ray.video.actor import PrepareActor
from museg_ray.video.loader import ClipHandle, ClipLoader
from museg_ray.video.prepare import PreparedClip, Preparer, Tell, read_clip
from museg_ray.video.store import GIB
from tests.video.conftest import Configure, Machine, Render, small_config, variant


class Origin:
    """Stands for the actor of another machine."""

    def __init__(self, config: VideoConfig) -> None:
        self.preparer = Preparer(config)
        self.num_sent = 0
        self.send = SimpleNamespace(remote=self._send)

    def _send(self, video: str) -> Clip:
        self.num_sent += 1
        clip = self.preparer.clip(video)
        return Clip(clip.key, clip.video, clip.frames.copy(), clip.times_s.copy(), clip.duration_s)

    def handle(self, video: str) -> ClipHandle:
        return ClipHandle(self.preparer.prepare(video), self)


@pytest.fixture
def origin(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Origin:
    monkeypatch.setattr(ray, "get", lambda clip, timeout: clip)
    return Origin(configure())


@pytest.fixture
def elsewhere(tmp_path: Path) -> VideoConfig:
    """The settings on another machine."""
    return small_config(tmp_path / "elsewhere")


def assert_right(clip: Clip, video: str, config: VideoConfig) -> None:
    expected = read_clip(video, config)
    assert (clip.key, clip.video, clip.duration_s) == (expected.key, video, expected.duration_s)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    np.testing.assert_array_equal(clip.times_s, expected.times_s)
    assert not clip.frames.flags.owndata and not clip.frames.flags.writeable, "not mapped"


def test_a_clip_of_this_machine_is_mapped(origin: Origin, configure: Configure, render: Render) -> None:
    video, loader = str(render(seconds=2)), ClipLoader(configure())
    assert_right(loader.load(origin.handle(video)), video, configure())
    assert loader.num_fetched == origin.num_sent == 0


def test_a_clip_of_another_machine_is_fetched_once(origin: Origin, elsewhere: VideoConfig, render: Render) -> None:
    video, loader = str(render(seconds=2)), ClipLoader(elsewhere)
    for _ in range(3):
        assert_right(loader.load(origin.handle(video)), video, elsewhere)
    assert_right(ClipLoader(elsewhere).load(origin.handle(video)), video, elsewhere)
    assert loader.num_fetched == origin.num_sent == 1


def test_a_clip_evicted_at_its_origin_is_prepared_again(
    origin: Origin, elsewhere: VideoConfig, render: Render, tmp_path: Path
) -> None:
    video = str(render(seconds=2))
    handle = origin.handle(video)
    for entry in (tmp_path / "store" / "clips").iterdir():
        entry.unlink()
    assert_right(ClipLoader(elsewhere).load(handle), video, elsewhere)


def test_a_clip_damaged_on_this_machine_is_fetched(
    origin: Origin, elsewhere: VideoConfig, render: Render, tmp_path: Path
) -> None:
    video = str(render(seconds=2))
    ClipLoader(elsewhere).load(origin.handle(video))
    (entry,) = (tmp_path / "elsewhere" / "clips").iterdir()
    entry.write_bytes(entry.read_bytes()[:-5000])
    assert_right(ClipLoader(elsewhere).load(origin.handle(video)), video, elsewhere)
    assert origin.num_sent == 2


def test_equal_files_have_the_names_that_they_are_asked_by(
    origin: Origin, elsewhere: VideoConfig, render: Render
) -> None:
    video = render(seconds=2)
    copy = str(video.with_name("copy.mp4"))
    os.link(video, copy)
    loader = ClipLoader(elsewhere)
    assert [loader.load(origin.handle(name)).video for name in (str(video), copy)] == [str(video), copy]
    assert loader.num_fetched == 1


def test_threads_that_want_the_same_clips_fetch_each_once(
    origin: Origin, elsewhere: VideoConfig, render: Render
) -> None:
    videos = [str(variant(render(seconds=2), number)) for number in range(3)]
    handles, loader = [origin.handle(video) for video in videos], ClipLoader(elsewhere)
    with ThreadPoolExecutor(8) as threads:
        clips = list(threads.map(loader.load, handles * 8))
    assert loader.num_fetched == origin.num_sent == 3
    for clip, video in zip(clips, videos * 8, strict=True):
        assert_right(clip, video, elsewhere)


def test_a_store_too_small_for_a_clip_still_gives_it(origin: Origin, render: Render, tmp_path: Path) -> None:
    config = small_config(tmp_path / "elsewhere", store_gib=1 / GIB)
    loader = ClipLoader(config)
    for video in [str(variant(render(seconds=2), number)) for number in range(3)]:
        assert_right(loader.load(origin.handle(video)), video, config)


def test_an_origin_whose_store_loses_the_clip_at_once_never_waits_for_itself(
    configure: Configure, render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that asked itself would wait for ever."""

    class ForgetfulReader:
        def __init__(self, config: VideoConfig, tell: Tell) -> None:
            self.config = config

        def prepare(self, video: str) -> PreparedClip:
            prepared = Preparer(self.config).prepare(video)
            for entry in (Path(self.config.store_dir) / "clips").iterdir():
                entry.unlink()
            return prepared

    def asks_itself(video: str) -> Any:
        pytest.fail("it asked itself")

    own = SimpleNamespace(send=SimpleNamespace(remote=asks_itself))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(current_actor=own))
    monkeypatch.setattr(actor_module, "GuardedReader", ForgetfulReader)
    with pytest.raises(MusegError):
        PrepareActor(configure()).send(str(render(seconds=2)))


def test_an_actor_sends_what_another_machine_lacks(machine: Machine, elsewhere: VideoConfig) -> None:
    video, loader = machine.new_video(), ClipLoader(elsewhere)
    (handle,) = machine.get(video)
    for _ in range(2):
        assert_right(loader.load(handle), video, elsewhere)
    assert loader.num_fetched == 1


def test_an_actor_prepares_again_what_left_its_store(machine: Machine, elsewhere: VideoConfig) -> None:
    video = machine.new_video()
    (handle,) = machine.get(video)
    machine.entry_of(handle).unlink()
    assert_right(ClipLoader(elsewhere).load(handle), video, elsewhere)


def test_a_clip_that_left_and_whose_file_is_gone_is_told(machine: Machine, elsewhere: VideoConfig) -> None:
    video = machine.new_video()
    (handle,) = machine.get(video)
    machine.entry_of(handle).unlink()
    Path(video).unlink()
    with pytest.raises(VideoError, match=f"{video}: No such file") as caught:
        ClipLoader(elsewhere).load(handle)
    assert caught.value.fault is VideoFault.MISSING
