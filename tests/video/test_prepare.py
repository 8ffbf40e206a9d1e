"""From a path or URL to an entry of the frame store: once for each content and settings, whoever asks, and however a
process that prepares ends."""

import dataclasses
import functools
import os
import random
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import ResourceError, VideoError, VideoFault
from museg_ray.types import Clip
from museg_ray.video import prepare as prepare_module
from museg_ray.video.prepare import PreparedClip, Preparer, clip_key, open_store, read_clip, source_id
from museg_ray.video.source import find_source
from museg_ray.video.store import GIB
from tests.video.conftest import Configure, RemoteFiles, Render, WebFile, alone, disk_fills_up, render_video, variant

CHANGES_PIXELS = {
    "sampling": "qwen_vl_utils",
    "fps": 1.5,
    "max_frames": 4,
    "min_pixels": 200 * 56,
    "max_pixels": 28 * 56,
    "total_pixels": 28 * 28 * 4,
    "size_multiple": 32,
    "pair_tokens": 1,
    "decoder": "decord",
}


def prepare_here(config: VideoConfig, video: str) -> PreparedClip:
    return Preparer(config).prepare(video)


def assert_same_pixels(clip: Clip, expected: Clip) -> None:
    assert (clip.key, clip.duration_s) == (expected.key, expected.duration_s)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    np.testing.assert_array_equal(clip.times_s, expected.times_s)


def test_a_clip_is_prepared_once_for_its_content(render: Render, configure: Configure) -> None:
    path, config = render(seconds=2), configure()
    copy = shutil.copy(path, path.with_name("copy.mp4"))
    first = Preparer(config).prepare(str(path))
    again = [Preparer(config).prepare(str(video)) for video in (path, copy)]
    path.rename(path.with_name("moved.mp4"))
    again.append(Preparer(config).prepare(str(path.with_name("moved.mp4"))))
    assert first.was_decoded and not any(prepared.was_decoded for prepared in again)
    assert {prepared.key for prepared in again} == {first.key}
    assert again[1].video == str(copy)
    assert Preparer(config).clip(str(copy)).video == str(copy)


def test_a_clip_has_the_pixels_of_its_file_and_is_described(render: Render, configure: Configure) -> None:
    path, config = str(render(seconds=2)), configure()
    prepared, clip, plain = Preparer(config).prepare(path), Preparer(config).clip(path), read_clip(path, config)
    assert_same_pixels(clip, plain)
    assert (prepared.key, prepared.video, prepared.shape) == (clip.key, path, clip.frames.shape)
    assert (prepared.duration_s, prepared.size_bytes) == (clip.duration_s, clip.frames.nbytes)
    assert not clip.frames.flags.owndata and not clip.frames.flags.writeable


def test_a_changed_file_is_another_clip(render: Render, configure: Configure) -> None:
    config = configure()
    preparer = Preparer(config)
    first = preparer.prepare(str(render(seconds=2)))
    second = preparer.prepare(str(render(seconds=3)))  # at the same path
    assert second.was_decoded and second.key != first.key and second.duration_s == 3


def test_a_file_put_back_is_the_clip_of_before(render: Render, configure: Configure) -> None:
    config, path = configure(), render(seconds=2)
    first = Preparer(config).prepare(str(path))
    kept = path.rename(path.with_name("kept.mp4"))
    Preparer(config).prepare(str(render(seconds=3)))
    kept.replace(path)
    assert Preparer(config).prepare(str(path)) == dataclasses.replace(first, was_decoded=False)


def test_every_setting_that_changes_pixels_changes_the_key(configure: Configure) -> None:
    config = configure()
    key = clip_key("a" * 64, config)
    for field in dataclasses.fields(VideoConfig):
        value = getattr(config, field.name)
        other = CHANGES_PIXELS.get(field.name, value + "x" if isinstance(value, str) else value + 1)
        changed = clip_key("a" * 64, dataclasses.replace(config, **{field.name: other}))
        assert (changed != key) == (field.name in CHANGES_PIXELS), field.name
    assert clip_key("b" * 64, config) != key


def test_settings_share_a_store_without_mixing(render: Render, configure: Configure) -> None:
    path = str(render(seconds=4, width=112, height=112))
    configs = [configure(), *(configure(**{name: value}) for name, value in CHANGES_PIXELS.items())]
    assert all(Preparer(config).prepare(path).was_decoded for config in configs)
    for config in configs:
        assert_same_pixels(Preparer(config).clip(path), read_clip(path, config))


def test_a_damaged_entry_is_decoded_again(render: Render, configure: Configure, tmp_path: Path) -> None:
    path, config = str(render(seconds=2)), configure()
    prepared = Preparer(config).prepare(path)
    entry = tmp_path / "store" / "clips" / f"{prepared.key}.arrow"
    content = entry.read_bytes()
    for damaged in (b"", content[:-100], content[:5000] + bytes(100) + content[5100:]):
        entry.write_bytes(damaged)
        assert Preparer(config).prepare(path).was_decoded
        assert entry.read_bytes() == content


def test_a_file_that_changes_while_it_is_decoded_never_gives_its_pixels_to_another(
    render: Render, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = render(seconds=2), configure()
    original = path.rename(path.with_name("original.mp4"))
    shutil.copy(original, path)
    decode = prepare_module.decode_clip

    def replaced_and_decoded(*arguments: Any) -> Clip:
        render(seconds=3)  # at the same path
        return decode(*arguments)

    monkeypatch.setattr(prepare_module, "decode_clip", replaced_and_decoded)
    try:
        assert Preparer(config).prepare(str(path)).duration_s == 3
    except VideoError as error:
        assert "changed" in str(error)
    monkeypatch.undo()
    assert_same_pixels(Preparer(config).clip(str(original)), read_clip(str(original), config))
    assert_same_pixels(Preparer(config).clip(str(path)), read_clip(str(path), config))


def test_a_refusal_names_file_reason_and_remedy_and_holds_nothing(configure: Configure, tmp_path: Path) -> None:
    video = str(tmp_path / "absent.mp4")
    for read in (Preparer(configure()).prepare, functools.partial(read_clip, config=configure())):
        with pytest.raises(VideoError, match=rf"{video}: No such file.*\. Check that the file plays") as caught:
            read(video)
        assert caught.value.fault is VideoFault.MISSING
        assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_a_refused_file_leaves_no_entry_and_no_lock(render: Render, configure: Configure, tmp_path: Path) -> None:
    path, config = render(seconds=2), configure()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for _ in range(2):
        with pytest.raises(VideoError):
            Preparer(config).prepare(str(path))
    assert not list((tmp_path / "store" / "clips").iterdir())
    path.write_bytes(content)
    assert Preparer(config).prepare(str(path)).was_decoded


def test_a_full_disk_is_not_the_videos_fault(render: Render, configure: Configure, tmp_path: Path) -> None:
    path, config = str(render(seconds=2)), configure()
    preparer = Preparer(config)
    with disk_fills_up(after_bytes=5000), pytest.raises(ResourceError, match=r"video\.store_dir"):
        preparer.prepare(path)
    assert not list((tmp_path / "store" / "clips").iterdir())
    assert preparer.prepare(path).was_decoded


def test_the_deadline_grows_with_the_video(render: Render, configure: Configure) -> None:
    path, config = str(render(seconds=4)), configure(deadline_s=10.0, deadline_per_video_s=0.5)
    allowed: list[float] = []
    Preparer(config, allowed.append).prepare(path)
    assert allowed[0] == 10 and max(allowed) == 12
    allowed.clear()
    Preparer(config, allowed.append).prepare(path)
    assert allowed == []  # the entry is there


@pytest.mark.timeout(60)
def test_a_lock_held_elsewhere_costs_no_video_and_its_wait_has_an_end(render: Render, configure: Configure) -> None:
    """Also where the same process holds both locks of a video, the source's and the content's."""
    path, config = str(render(seconds=2)), configure(deadline_s=0.5)
    allowed: list[float] = []
    told: list[str] = []
    preparer, held = Preparer(config, allowed.append, told.append), open_store(config)
    noted_as = source_id(find_source(path))
    key = read_clip(path, config).key
    with alone(held, noted_as), alone(held, key):
        assert preparer.prepare(path).was_decoded
    assert len(told) == 2 and all(text.startswith(f"{path} waited ") for text in told)
    assert all(f"s for process {os.getpid()} on" in text for text in told)
    assert allowed[0] == 1.0 and max(allowed[1:]) < 1.0, "one wait, with the deadline after it"
    preparer.prepare(path)
    assert len(told) == 2


def test_a_short_wait_is_no_news(render: Render, configure: Configure) -> None:
    path, config, waiting, told = str(render(seconds=2)), configure(), Event(), list[str]()
    noted_as = source_id(find_source(path))
    with ThreadPoolExecutor(1) as thread:
        with alone(open_store(config), noted_as):
            other = thread.submit(Preparer(config, lambda seconds: waiting.set(), told.append).prepare, path)
            assert waiting.wait(60) and not other.done()
        assert other.result().was_decoded and not told


def test_a_remote_video_is_fetched_once(remote: RemoteFiles, render: Render, configure: Configure) -> None:
    path, config = render(seconds=2), configure()
    url = remote.put("v.mp4", path.read_bytes())
    assert Preparer(config).prepare(url).was_decoded
    assert not Preparer(config).prepare(url).was_decoded
    assert Preparer(configure(fps=1.0)).prepare(url).was_decoded
    assert remote.num_opened["v.mp4"] == 1
    assert not Preparer(config).prepare(str(path)).was_decoded  # the same content
    assert_same_pixels(Preparer(config).clip(url), read_clip(str(path), config))
    assert read_clip(url, config).video == url


def test_a_remote_video_that_changed_is_another_clip(remote: RemoteFiles, render: Render, configure: Configure) -> None:
    preparer = Preparer(configure())
    for seconds in (2, 3):
        url = remote.put("v.mp4", render(seconds=seconds).read_bytes())
        prepared = preparer.prepare(url)
        assert prepared.was_decoded and prepared.duration_s == seconds
    assert remote.num_opened["v.mp4"] == 2


def test_a_remote_clip_stays_when_its_copy_leaves(remote: RemoteFiles, render: Render, configure: Configure) -> None:
    config = configure(download_gib=10 / GIB)
    urls = [remote.put(f"{seconds}.mp4", render(seconds=seconds).read_bytes()) for seconds in (2, 3)]
    for url in urls:
        Preparer(config).prepare(url)
    assert len(list((Path(config.store_dir) / "downloads").iterdir())) == 1
    assert not any(Preparer(config).prepare(url).was_decoded for url in urls)
    assert Preparer(dataclasses.replace(config, fps=1.0)).prepare(urls[0]).was_decoded
    assert remote.num_opened == {"2.mp4": 2, "3.mp4": 1}


def test_an_absent_remote_video_is_missing(remote: RemoteFiles, configure: Configure) -> None:
    with pytest.raises(VideoError, match=r"memory://absent.mp4: .*absent.mp4") as caught:
        Preparer(configure()).prepare("memory://absent.mp4")
    assert caught.value.fault is VideoFault.MISSING


def test_threads_with_preparers_of_their_own_share_the_work(
    remote: RemoteFiles, render: Render, configure: Configure
) -> None:
    config = configure()
    url = remote.put("v.mp4", render(seconds=2).read_bytes())
    with ThreadPoolExecutor(4) as threads:
        prepared = list(threads.map(functools.partial(prepare_here, config), [url] * 8))
    assert sum(clip.was_decoded for clip in prepared) == 1 and remote.num_opened["v.mp4"] == 1


def test_a_store_may_lie_at_any_path(render: Render, configure: Configure, tmp_path: Path) -> None:
    config = configure(store_dir=str(tmp_path / "мои кадры #1" / "画 面"))
    assert Preparer(config).prepare(str(render("видео 1.mp4", seconds=2))).was_decoded


def test_processes_that_want_the_same_videos_decode_each_once(
    forkserver: ForkServerContext, render: Render, configure: Configure
) -> None:
    config = configure()
    videos = [str(variant(render(seconds=2), number)) for number in range(4)]
    preparer = Preparer(config, float, str)  # to be pickled
    with ProcessPoolExecutor(6, mp_context=forkserver) as processes:
        asked = [processes.submit(preparer.prepare, videos[number % 4]) for number in range(48)]
        prepared = [future.result() for future in asked]
    assert sum(clip.was_decoded for clip in prepared) == 4
    assert len({clip.key for clip in prepared}) == 4
    for video in videos:
        assert_same_pixels(preparer.clip(video), read_clip(video, config))


def test_processes_under_a_tiny_limit_drive_out_each_others_clips_unharmed(
    forkserver: ForkServerContext, render: Render, configure: Configure
) -> None:
    config = configure(store_gib=40_000 / GIB)  # one fits
    videos = [str(variant(render(seconds=2), number)) for number in range(4)]
    preparer = Preparer(config, float, str)
    with ProcessPoolExecutor(4, mp_context=forkserver) as processes:
        prepared = list(processes.map(preparer.prepare, videos * 8))
    assert {clip.video for clip in prepared} == set(videos)


def test_processes_that_want_the_same_remote_video_fetch_it_once(
    forkserver: ForkServerContext, web_file: WebFile, render: Render, configure: Configure
) -> None:
    web_file.content = render(seconds=2).read_bytes()
    preparer = Preparer(configure(), float, str)
    with ProcessPoolExecutor(4, mp_context=forkserver) as processes:
        prepared = list(processes.map(preparer.prepare, [web_file.url] * 8))
    assert sum(clip.was_decoded for clip in prepared) == 1
    assert web_file.num_sent == 1


def test_a_process_killed_at_any_moment_leaves_no_damage(
    forkserver: ForkServerContext, tmp_path: Path, configure: Configure
) -> None:
    config = configure(max_pixels=280 * 56, fps=8.0)
    path = render_video(tmp_path / "long.mp4", fps=8, seconds=12)
    preparer = Preparer(config, float, str)

    def start(number: int) -> Any:
        process = forkserver.Process(target=preparer.prepare, args=(str(variant(path, number)),))
        process.start()
        return process

    start(0).join()
    start_s = time.monotonic()
    start(1).join()
    usual_s = time.monotonic() - start_s
    moments, num_killed = random.Random(0), 0
    for number in range(2, 22):
        process = start(number)
        time.sleep(moments.uniform(0, 1.05 * usual_s))
        process.kill()
        process.join()
        num_killed += process.exitcode == -signal.SIGKILL
    assert num_killed >= 5
    store = open_store(config)
    for entry in (tmp_path / "store" / "clips").glob("*.arrow"):
        assert store.get(entry.stem, "v.mp4") is not None, entry
    for partial in (tmp_path / "store").rglob("*.partial"):
        os.utime(partial, (0, 0))
    waits: list[float] = []
    fresh, expected = Preparer(config, waits.append), read_clip(str(path), config)
    for number in range(22, 0, -1):  # 22 is new
        clip = fresh.clip(str(variant(path, number)))
        np.testing.assert_array_equal(clip.frames, expected.frames)
    assert max(waits) < 2 * config.deadline_s, "a lock was stuck"
    assert not list((tmp_path / "store" / "clips").glob("*.partial"))


def test_a_download_that_does_not_decode_is_fetched_anew_the_next_time(
    web_file: WebFile, render: Render, configure: Configure
) -> None:
    """Else what was damaged on its way would stand for the video for ever: its copy, or the note of its content."""
    config, good = configure(), render(seconds=2).read_bytes()
    web_file.content = good
    web_file.sent = good[:-1000] + bytes(1000)  # its index
    with pytest.raises(VideoError) as caught:
        Preparer(config).prepare(web_file.url)
    assert caught.value.fault is not VideoFault.UNREACHABLE
    store = Path(config.store_dir)
    assert not list((store / "downloads").iterdir()) and not list((store / "sources").iterdir())
    web_file.sent = None
    assert Preparer(config).prepare(web_file.url).was_decoded
