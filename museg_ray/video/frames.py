"""Which frames of a video the model sees and how large: pure arithmetic, no decoding.

Counts and sizes are those of qwen-vl-utils 0.0.14 (`smart_nframes`, `fetch_video`, `smart_resize`), so token counts
match the published MUSEG. The frames differ on purpose: qwen-vl-utils spreads frame INDICES from the first to the last
frame, which shifts the time of each frame by up to half a sampling period (more at variable frame rates); here they are
spread in TIME, because the answers are times. `video.sampling=qwen_vl_utils` takes its very frames.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError, VideoFault

FRAME_FACTOR = 2
"""Frames that become one temporal patch: the count is a multiple of it."""
MIN_FRAMES = 4
MAX_ASPECT_RATIO = 200
TIE_S = 1e-4
"""Two frames are equally near when their distances differ by less (seconds): times are quotients."""


def choose_indices(
    starts_s: npt.NDArray[np.float64], duration_s: float, average_fps: float, config: VideoConfig
) -> npt.NDArray[np.int64]:
    """Indices [T] of the frames that the model sees, by `video.sampling`.

    Args:
        starts_s: [N] presentation times of all frames, non-decreasing, seconds.
        duration_s: where the last one ends.
        average_fps: as the container tells it; qwen-vl-utils goes by it and by nothing else.

    Raises:
        VideoError: the video has fewer than 2 frames.
    """
    if config.sampling == "qwen_vl_utils":
        believed_s = len(starts_s) / average_fps if average_fps > 0 else duration_s
        num_frames = choose_num_frames(believed_s, len(starts_s), config)
        # torch, as there: float32 decides which of two frames is nearer.
        return torch.linspace(0, len(starts_s) - 1, num_frames).round().long().numpy()
    return choose_frames(starts_s, duration_s, choose_num_frames(duration_s, len(starts_s), config))


def largest_clip_bytes(config: VideoConfig) -> int:
    """Bytes of the pixels of the largest clip of an ordinary shape; very elongated ones can have more."""
    max_frames = _most_frames(config)
    by_budget = config.total_pixels * FRAME_FACTOR
    by_floor = max_frames * int(config.min_pixels * 1.05)
    return 3 * int(max(by_budget, by_floor, MIN_FRAMES * config.size_multiple**2))


def choose_num_frames(duration_s: float, num_video_frames: int, config: VideoConfig) -> int:
    """Frames to select: `fps` a second, at least 4, at most `max_frames`, never more than the video has, even.

    Raises:
        VideoError: the video has fewer than 2 frames.
    """
    wanted = max(duration_s * config.fps, MIN_FRAMES)
    num_frames = int(min(wanted, _most_frames(config), num_video_frames))
    num_frames = _floor(num_frames, FRAME_FACTOR)
    if num_frames < FRAME_FACTOR:
        raise VideoError(
            f"it has {num_video_frames} frame(s), at least {FRAME_FACTOR} are needed", VideoFault.TOO_SHORT
        )
    return num_frames


def choose_frames(starts_s: npt.NDArray[np.float64], duration_s: float, num_frames: int) -> npt.NDArray[np.int64]:
    """Indices [T] of the frames presented nearest to k * duration_s / T; of two equally near the earlier one.

    Args:
        starts_s: [N] presentation times of all frames, non-decreasing, seconds.
    """
    targets_s = np.arange(num_frames) * (duration_s / num_frames)  # [T]
    after = np.searchsorted(starts_s, targets_s).clip(1, len(starts_s) - 1)
    before = after - 1
    after_is_nearer = (starts_s[after] - targets_s) < (targets_s - starts_s[before]) - TIE_S
    return np.where(after_is_nearer, after, before)


def clip_size(height: float, width: float, num_frames: int, config: VideoConfig) -> tuple[int, int]:
    """Final (height, width) of a clip's frames, multiples of `size_multiple` in the pixel budget, aspect ratio kept.

    Each frame gets an even share of `total_pixels` per frame pair, less what `pair_tokens` take, at most `max_pixels`;
    `min_pixels` wins over both.

    Raises:
        VideoError: the frame is so elongated that no size fits (qwen-vl-utils fails there too).
    """
    share = config.total_pixels / num_frames * FRAME_FACTOR - _written_pixels(config)
    max_pixels = max(min(config.max_pixels, share), int(config.min_pixels * 1.05))
    size = _smart_resize(height, width, config.size_multiple, config.min_pixels, max_pixels)
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width) or min(size) == 0:
        raise VideoError(
            f"its frames of {width:.0f}x{height:.0f} are too elongated for a budget of {max_pixels:.0f} pixels",
            VideoFault.TOO_ELONGATED,
        )
    return size


def _most_frames(config: VideoConfig) -> int:
    """`max_frames`; fewer where what is written leaves no room in the budget for so many of the least size."""
    most = config.max_frames
    if written := _written_pixels(config):
        num_pairs = config.total_pixels // (int(config.min_pixels * 1.05) + written)
        most = min(most, max(MIN_FRAMES, num_pairs * FRAME_FACTOR))
    return _floor(most, FRAME_FACTOR)


def _written_pixels(config: VideoConfig) -> int:
    """Pixels that cost as many tokens as what the prompt has a frame pair beside them."""
    return config.pair_tokens * config.size_multiple**2


def _smart_resize(height: float, width: float, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    sides = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [_floor(side / shrink, factor) for side in (height, width)]
    elif sides[0] * sides[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


def _floor(value: float, factor: int) -> int:
    return math.floor(value / factor) * factor
