"""Reads a video file into a Clip, in the calling process; `actor.py` adds the deadline and the sharing.

decord decodes with one thread: more threads make it slower at 2 frames a second, and less stable.
"""

import hashlib
import re

import decord
import numpy as np
import numpy.typing as npt
import torch

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.types import ByteArray, Clip, FloatArray
from museg_ray.video.frames import choose_frames, choose_num_frames, clip_size

CHUNK_FRAMES = 16
"""Frames decoded at once: full-size frames of one chunk are all that memory holds of them."""
FAULT_TOLERANCE = 0.01
"""decord replaces frames it cannot decode by neighbours; beyond this share of the video it fails instead."""

CLOCK_ROUNDING_S = 0.005
"""Containers count time in steps of up to a few milliseconds."""

DECODER_ERRORS = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError)
REASONS = {
    "Error reading": "it is not a video file, or it was cut off before its index",
    "cannot find video stream": "it has no video stream",
    "av_read_frame failed": "it is cut off: its index names frames that are missing",
    "Failed to measure duration": "its timing information is broken",
    "corrupted and recovered": f"more than {FAULT_TOLERANCE:.0%} of its frames cannot be decoded",
}
"""What decord says, and what it means."""
SOURCE_LINE = r"\[[\d:]+\] \S+:\d+: "
"""How decord starts a message: time, C++ file and line."""

decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's lines break into the display; VideoError has the reason.


def read_clip(path: str, config: VideoConfig) -> Clip:
    """Decode the frames that the model sees.

    `times_s` are real presentation times from the video's first frame; `duration_s` is where its last frame ends.

    Raises:
        VideoError: the file cannot be used; names file, reason and remedy. No other video ever takes its place.
    """
    try:
        key = _clip_key(path, config)
        frames, times_s, duration_s = _decode(path, config)
    except OSError as error:
        reason = error.strerror or str(error)
    except VideoError as error:
        reason = str(error)
    except DECODER_ERRORS as error:
        reason = _plain_reason(str(error))
    else:
        return Clip(key, path, frames, times_s, duration_s)
    # Raised out here, unchained: a traceback that reaches into decord would keep the reader alive, and it decodes on.
    raise VideoError(
        f"Cannot read the video {path}: {reason}. "
        "Check that the file plays; fetch it again, or take its rows out of the annotation file."
    )


def _clip_key(path: str, config: VideoConfig) -> str:
    """Hash of the file's bytes and of the settings that select and resize: equal keys mean equal clips, at any path."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        if file.tell() == 0:
            raise VideoError("the file is empty")
    settings = (config.fps, config.max_frames, config.min_pixels, config.max_pixels, config.total_pixels)
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def _decode(path: str, config: VideoConfig) -> tuple[ByteArray, FloatArray, float]:
    """Frames [T, H, W, 3], times [T] in seconds, duration in seconds."""
    reader = decord.VideoReader(path, num_threads=1, fault_tol=FAULT_TOLERANCE)
    try:
        starts_s, duration_s = _timeline(reader)
        num_frames = choose_num_frames(duration_s, len(starts_s), config)
        indices = choose_frames(starts_s, duration_s, num_frames)
        chunks = []
        for start in range(0, num_frames, CHUNK_FRAMES):
            chunk = reader.get_batch(indices[start : start + CHUNK_FRAMES]).asnumpy()
            height, width = chunk.shape[1:3]
            chunks.append(_resize(chunk, clip_size(height, width, num_frames, config)))
    finally:
        del reader  # A reader that lies idle decodes the rest of the video into memory.
    return np.concatenate(chunks), starts_s[indices].astype(np.float32), duration_s


def _timeline(reader: decord.VideoReader) -> tuple[npt.NDArray[np.float64], float]:
    """Start of each frame [N] and the end of the last, in seconds from the first frame's start.

    A container that counts in milliseconds ends a 12 s video at 11.999 s, which would cost a frame pair: where the last
    end is frames / rate but for such rounding, as at every constant rate, the quotient is the duration.

    Raises:
        VideoError: all frames are presented at once.
    """
    spans_s = reader.get_frame_timestamp(np.arange(len(reader))).astype(np.float64)  # [N, 2]
    starts_s = spans_s[:, 0] - spans_s[0, 0]
    duration_s = float(spans_s[-1, 1] - spans_s[0, 0])
    fps = reader.get_avg_fps()
    if fps > 0 and abs(len(reader) / fps - duration_s) < CLOCK_ROUNDING_S:
        duration_s = len(reader) / fps
    if round(duration_s, 3) == 0:
        raise VideoError("it lasts no time")
    return starts_s, round(duration_s, 3)  # Divisions and float32 times end near, not at, 12.0.


def _resize(frames: ByteArray, size: tuple[int, int]) -> ByteArray:
    """Bicubic with antialiasing, [T, H, W, 3] -> [T, *size, 3], on uint8: 25 times faster than on float32.

    Equals torchvision's v2 resize of uint8 frames.
    """
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)  # [T, 3, H, W], channels last in memory
    resized = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).numpy()


def _plain_reason(message: str) -> str:
    for said, meant in REASONS.items():
        if said in message:
            return meant
    return f"its frames cannot be decoded ({re.sub(SOURCE_LINE, '', message.splitlines()[0])})"
