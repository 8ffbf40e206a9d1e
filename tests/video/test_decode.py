import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.types import ByteArray
from museg_ray.video.prepare import read_clip

MUSEG = VideoConfig()
SMALL = VideoConfig(max_pixels=280 * 56)


Render = Callable[..., Path]


@pytest.mark.parametrize("fps", [10, 12, 15, 24, 25, 30])
@pytest.mark.parametrize("seconds", [7, 12])
def test_whole_seconds_give_exact_times(render: Render, fps: int, seconds: int) -> None:
    clip = read_clip(str(render(fps=fps, seconds=seconds)), SMALL)
    assert clip.duration_s == seconds
    assert len(clip.frames) == seconds * 2
    assert clip.sample_fps == 2.0
    np.testing.assert_allclose(clip.times_s, np.arange(seconds * 2) / 2, atol=0.5 / fps + 1e-4)


def test_a_clock_of_milliseconds_costs_no_frames(render: Render) -> None:
    clip = read_clip(str(render("video.mkv", seconds=12)), SMALL)
    assert (len(clip.frames), clip.duration_s) == (24, 12.0)


@pytest.mark.parametrize("fps", [12, 15, 25, Fraction(30000, 1001)])
def test_each_frame_is_the_one_its_time_says(
    render: Render, read_number: Callable[[ByteArray], int], fps: int | Fraction
) -> None:
    clip = read_clip(str(render(fps=fps, seconds=20)), SMALL)
    assert [read_number(frame) for frame in clip.frames] == [round(time_s * fps) for time_s in clip.times_s.tolist()]


def test_times_are_real_at_a_variable_rate(render: Render, read_number: Callable[[ByteArray], int]) -> None:
    times_s = np.concatenate([np.arange(100) * 0.033, 3.3 + np.arange(100) * 0.1])
    clip = read_clip(str(render(times_s=times_s.tolist())), SMALL)
    numbers = [read_number(frame) for frame in clip.frames]
    np.testing.assert_allclose(clip.times_s, times_s[numbers], atol=1e-3)
    np.testing.assert_allclose(clip.times_s, np.arange(26) * clip.duration_s / 26, atol=0.051)


def test_times_start_at_the_first_frame(render: Render) -> None:
    late = read_clip(str(render("video.mkv", times_s=[5 + number / 24 for number in range(48)])), SMALL)
    assert late.times_s[0] == 0
    assert late.duration_s == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize(("width", "height"), [(280, 56), (101, 57), (58, 350)])
def test_frames_are_bytes_of_whole_tokens(render: Render, width: int, height: int) -> None:
    frames = read_clip(str(render(fps=10, seconds=5, width=width, height=height)), MUSEG).frames
    assert frames.dtype == np.uint8 and frames.flags.c_contiguous
    assert frames.shape[0] == 10 and frames.shape[3] == 3
    assert frames.shape[1] % 28 == frames.shape[2] % 28 == 0


@pytest.mark.parametrize(
    ("fps", "seconds", "width", "height"), [(24, 12, 280, 56), (15, 31, 102, 58), (10, 3, 640, 360)]
)
def test_clips_match_those_of_qwen_vl_utils(
    render: Render, qwen: ModuleType, fps: int, seconds: int, width: int, height: int
) -> None:
    path = str(render(fps=fps, seconds=seconds, width=width, height=height))
    settings = {"fps": 2.0, "max_frames": 448, "min_pixels": MUSEG.min_pixels, "total_pixels": MUSEG.total_pixels}
    theirs, sample_fps = qwen.fetch_video({"video": path, **settings}, return_video_sample_fps=True)
    ours = read_clip(path, MUSEG)
    assert ours.frames.transpose(0, 3, 1, 2).shape == theirs.shape
    assert ours.sample_fps == sample_fps
    first_frame = theirs[0].permute(1, 2, 0).numpy()
    assert np.abs(ours.frames[0] - first_frame).mean() < 0.5


def test_sampling_of_qwen_vl_utils_gives_its_very_frames(render: Render, qwen: ModuleType) -> None:
    path = str(render(fps=30, seconds=20, width=320, height=180))
    settings = {"fps": 2.0, "max_frames": 448, "min_pixels": MUSEG.min_pixels, "total_pixels": MUSEG.total_pixels}
    theirs = qwen.fetch_video({"video": path, **settings}).permute(0, 2, 3, 1).numpy()
    ours = read_clip(path, replace(MUSEG, sampling="qwen_vl_utils"))
    assert np.abs(ours.frames - theirs).mean(axis=(1, 2, 3)).max() < 1, "every frame within a grey level"
    indices = np.linspace(0, 599, 40).round()
    np.testing.assert_allclose(ours.times_s, indices / 30, atol=1e-3)


def test_leaving_out_frames_that_nobody_needs_changes_no_pixel(render: Render) -> None:
    path = str(render(fps=24, seconds=10))
    every_frame = read_clip(path, replace(SMALL, fps=24))  # all are wanted, so none is left out
    some = read_clip(path, SMALL)
    np.testing.assert_array_equal(some.frames, every_frame.frames[::12])


def test_long_videos_stay_in_the_frame_and_pixel_budget(render: Render) -> None:
    config = VideoConfig(max_frames=20, total_pixels=10 * 5 * 28 * 28, min_pixels=28 * 28)
    clip = read_clip(str(render(fps=10, seconds=30)), config)
    assert len(clip.frames) == 20
    assert clip.frames[::2, :, :, 0].size <= config.total_pixels
    assert clip.sample_fps == pytest.approx(20 / 30)


def test_the_key_stands_for_content_and_settings_alone(render: Render, tmp_path: Path) -> None:
    path = render(seconds=2)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(path.read_bytes())
    other = render("other.mp4", seconds=3)
    key = read_clip(str(path), MUSEG).key
    assert read_clip(str(copy), VideoConfig(deadline_s=1)).key == key
    assert read_clip(str(path), SMALL).key != key
    assert read_clip(str(other), MUSEG).key != key


def test_names_need_not_be_ascii(render: Render) -> None:
    path = str(render("ünï çödé 视频.mp4", seconds=2))
    assert read_clip(path, SMALL).video == path


def _missing(render: Render) -> Path:
    path = render()
    path.unlink()
    return path


def _directory(render: Render) -> Path:
    path = _missing(render)
    path.mkdir()
    return path


def _empty(render: Render) -> Path:
    return _overwritten(render(), b"")


def _text(render: Render) -> Path:
    return _overwritten(render(), b"This is no video.\n" * 100)


def _cut_before_its_index(render: Render) -> Path:
    path = render(seconds=2)
    return _overwritten(path, path.read_bytes()[:-100])


def _cut_behind_its_index(render: Render) -> Path:
    path = render(seconds=2, movflags="faststart")
    return _overwritten(path, path.read_bytes()[:-100])


def _garbled(render: Render) -> Path:
    path = render()
    content = path.read_bytes()
    start, end = content.index(b"mdat") + 1500, content.index(b"moov") - 100
    return _overwritten(path, content[:start] + np.random.default_rng(0).bytes(end - start) + content[end:])


def _sound_only(render: Render) -> Path:
    path = render()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _no_frames(render: Render) -> Path:
    path = render()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return path


def _one_frame(render: Render) -> Path:
    return render(fps=10, seconds=0.1)


def _no_time(render: Render) -> Path:
    return render(fps=10000, seconds=0.0004)


def _overwritten(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_missing, "No such file or directory"),
        (_directory, "Is a directory"),
        (_empty, "the file is empty"),
        (_text, "it is not a video file"),
        (_cut_before_its_index, "cut off before its index"),
        (_cut_behind_its_index, "it is cut off"),
        (_garbled, "chosen frames may be damaged"),
        (_sound_only, "it has no video stream"),
        (_no_frames, "it has no video stream"),
        (_one_frame, "it has 1 frame"),
        (_no_time, "it holds no frame"),
    ],
)
def test_an_unusable_file_is_refused_by_name_reason_and_remedy(
    render: Render, make: Callable[[Render], Path], reason: str
) -> None:
    path = make(render)
    with pytest.raises(VideoError) as caught:
        read_clip(str(path), SMALL)
    message = str(caught.value)
    assert str(path) in message and reason in message and "Check that the file plays" in message
    assert "\n" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused_by_name(render: Render) -> None:
    path = render(seconds=2)
    path.chmod(0)
    with pytest.raises(VideoError, match=f"{path}: Permission denied"):
        read_clip(str(path), SMALL)


def test_a_refused_file_leaves_no_reader_behind(render: Render) -> None:
    """An exception that reached into a decoder would keep its buffers alive."""
    with pytest.raises(VideoError) as caught:
        read_clip(str(_one_frame(render)), SMALL)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
