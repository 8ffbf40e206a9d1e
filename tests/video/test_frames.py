import dataclasses
from types import ModuleType

import numpy as np
import pytest

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.video.frames import choose_frames, choose_num_frames, clip_size, largest_clip_bytes

MUSEG = VideoConfig()
TINY = VideoConfig(max_frames=24, min_pixels=3136, max_pixels=3136, total_pixels=37632)
QWEN3_VL = VideoConfig(size_multiple=32, min_pixels=16 * 32 * 32, max_pixels=768 * 32 * 32, total_pixels=3584 * 32 * 32)
SIZES = [(270, 480), (480, 270), (720, 1280), (1080, 1920), (57, 101), (28, 28), (30, 110), (1200, 300), (56, 56)]


@pytest.mark.parametrize("config", [MUSEG, TINY, VideoConfig(fps=1.3, max_frames=99)])
def test_frame_counts_equal_those_of_qwen_vl_utils(qwen: ModuleType, config: VideoConfig) -> None:
    for video_fps in (1, 10, 12.5, 24, 25, 30000 / 1001, 30, 60):
        for num_video_frames in (2, 3, 4, 5, 7, 24, 47, 48, 49, 299, 300, 301, 5000, 20000):
            ours = choose_num_frames(num_video_frames / video_fps, num_video_frames, config)
            settings = {"fps": config.fps, "max_frames": config.max_frames}
            assert ours == qwen.smart_nframes(settings, num_video_frames, video_fps)


@pytest.mark.parametrize("config", [MUSEG, TINY, VideoConfig(total_pixels=100 * 28 * 28), QWEN3_VL])
def test_sizes_equal_those_of_qwen_vl_utils(qwen: ModuleType, config: VideoConfig) -> None:
    for num_frames in (2, 4, 24, 60, 240, 448):
        for height, width in SIZES:
            per_frame = min(config.max_pixels, config.total_pixels / num_frames * 2)
            per_frame = max(per_frame, int(config.min_pixels * 1.05))
            theirs = qwen.smart_resize(height, width, config.size_multiple, config.min_pixels, per_frame)
            assert clip_size(height, width, num_frames, config) == theirs


@pytest.mark.parametrize(
    ("duration_s", "video_fps", "height", "width", "num_frames", "size"),
    [
        (30.4, 30, 270, 480, 60, (224, 392)),
        (120, 30, 720, 1280, 240, (112, 196)),
        (240, 25, 720, 1280, 448, (84, 140)),
    ],
)
def test_counts_and_sizes_at_the_published_settings(
    duration_s: float, video_fps: float, height: int, width: int, num_frames: int, size: tuple[int, int]
) -> None:
    assert choose_num_frames(duration_s, round(duration_s * video_fps), MUSEG) == num_frames
    assert clip_size(height, width, num_frames, MUSEG) == size


def test_what_a_family_writes_beside_the_pixels_counts_in_the_budget() -> None:
    """Qwen3-VL writes each pair's time: of an hour at the published settings 448 frames would take 5,000 tokens."""
    config = dataclasses.replace(QWEN3_VL, pair_tokens=11)
    budget = config.total_pixels // config.size_multiple**2
    for duration_s in (3, 30, 120, 240, 3600):
        for height, width in ((270, 480), (480, 270), (720, 1280), (1080, 1920)):
            num_frames = choose_num_frames(duration_s, duration_s * 25, config)
            height, width = clip_size(height, width, num_frames, config)
            tokens = num_frames // 2 * (height * width // config.size_multiple**2 + config.pair_tokens)
            assert tokens <= budget and (duration_s < 120 or tokens > 0.6 * budget)
            assert 3 * height * width * num_frames <= largest_clip_bytes(config)
    assert choose_num_frames(3600, 90_000, config) == 2 * int(budget / (16 * 1.05 + 11))
    assert choose_num_frames(3600, 90_000, QWEN3_VL) == 448


def test_a_single_frame_is_no_video() -> None:
    with pytest.raises(VideoError, match=r"it has 1 frame\(s\), at least 2"):
        choose_num_frames(1.0, 1, MUSEG)


@pytest.mark.parametrize(("height", "width"), [(10, 2010), (28, 5600), (5600, 28)])
def test_a_frame_too_elongated_for_any_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(VideoError, match="too elongated"):
        clip_size(height, width, 448, MUSEG)


def test_frames_are_even_in_time_at_a_variable_rate() -> None:
    starts_s = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 2.0, 3.0])
    assert choose_frames(starts_s, duration_s=4.0, num_frames=4).tolist() == [0, 5, 6, 7]


def test_a_frame_held_for_long_is_chosen_again() -> None:
    starts_s = np.array([0.0, 1.0, 1.1, 1.2])
    assert choose_frames(starts_s, duration_s=8.0, num_frames=4).tolist() == [0, 3, 3, 3]


def test_of_two_equally_near_frames_the_earlier_is_chosen() -> None:
    starts_s = (np.arange(180) / np.float32(15)).astype(np.float32).astype(np.float64)
    indices = choose_frames(starts_s, duration_s=12.0, num_frames=24)
    assert indices.tolist() == [15 * k // 2 for k in range(24)]
