"""Decodes the chosen frames of a local video file, in the calling process; `reader.py` adds the deadline.

PyAV with one thread. Only frames that are chosen, or that others refer to, are decoded: on ordinary H.264 that is about
half of them, and the pixels are the same. Of full-size frames memory holds a handful.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import av
import numpy as np
import numpy.typing as npt
import torch

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError, VideoFault
from museg_ray.types import ByteArray, Clip
from museg_ray.video.container import open_container, video_stream
from museg_ray.video.decoder import Decoder
from museg_ray.video.display import Display
from museg_ray.video.frames import choose_indices, clip_size
from museg_ray.video.probe import Timing, VideoProbe, timeline

DAMAGE_TOLERANCE = 0.01
"""Share of the chosen frames that may be damaged, and of a video's end that may not come out of its decoder."""
MAX_WAITING = 2
"""Decoded frames that wait to be resized."""
LATEST_START_S = 1.0
"""A recording that begins between two key frames shows nothing up to the first; later than this it lacks a part."""


def decode_clip(path: str, key: str, config: VideoConfig, probed: VideoProbe) -> Clip:
    """The frames of a local file that the model sees.

    `times_s` are real presentation times from the video's first frame; `duration_s` is where its last frame ends.

    Args:
        key: what the clip is to be called.
        probed: the file, as its packets promise it.

    Raises:
        VideoError: the file cannot be used; its message is the reason alone.
    """
    indices, frames = _choose(probed, config), None
    if probed.pts is not None:
        chosen = probed.pts[indices]
        frames = _gather(Decoder(path, set(chosen.tolist())), chosen, probed.display, config)
    if frames is None:  # packets and frames are not one to one: go by the frames that really come out
        probed = _probe_by_decoding(path, probed)
        indices = _choose(probed, config)
        frames = _gather(Decoder(path), indices, probed.display, config)
    if frames is None:
        raise VideoError("its frames cannot be decoded", VideoFault.CORRUPT)
    if config.decoder == "decord":
        frames = _through_decord(path, probed, indices, config)
    return Clip(key, path, frames, probed.starts_s[indices].astype(np.float32), probed.duration_s)


def _choose(probed: VideoProbe, config: VideoConfig) -> npt.NDArray[np.int64]:
    return choose_indices(probed.starts_s, probed.duration_s, probed.average_fps, config)


def _probe_by_decoding(path: str, promised: VideoProbe) -> VideoProbe:
    """The frames that come out of the decoder, whatever the packets promised.

    Raises:
        VideoError: they start late or end early.
    """
    decoder = Decoder(path)
    timings = [Timing(frame.pts, frame.duration or 0) for frame, _ in decoder]
    if not timings:
        raise VideoError("its frames cannot be decoded", VideoFault.CORRUPT)
    with open_container(path) as container:
        stream = video_stream(container)
        found = timeline(stream, timings)
        late_s = 0.0
        if promised.pts is not None and found.pts is not None:
            late_s = float((int(found.pts[0]) - int(promised.pts[0])) * stream.time_base)
    held_s = late_s + found.duration_s
    if late_s > LATEST_START_S or held_s < promised.duration_s * (1 - DAMAGE_TOLERANCE):
        raise VideoError(
            f"only {found.duration_s:.2f} s of its {promised.duration_s:.2f} s can be decoded", VideoFault.CORRUPT
        )
    return replace(found, display=promised.display)


def _gather(decoder: Decoder, chosen: npt.NDArray[np.int64], display: Display, config: VideoConfig) -> ByteArray | None:
    """The clip's frames [T, H, W, 3]; None when some did not come out.

    Args:
        chosen: [T] pts of the frames where the decoder has those wanted, else their numbers.

    Raises:
        VideoError: too many are damaged.
    """
    places, builder = _places(chosen), _ClipBuilder(len(chosen), display, config)
    stretches = np.full(len(chosen), -1)  # [T] of each frame, -1 where it has not come out yet
    with closing(builder):
        for number, (frame, stretch) in enumerate(decoder):
            if here := places.get(number if decoder.wanted_pts is None else frame.pts):
                builder.add(frame, here)
                stretches[here] = stretch
            if stretches.min() >= 0 and decoder.stretch > stretches.max():
                break  # all are here, and nothing more is to be learnt about the last one's stretch
        if stretches.min() < 0:
            return None
        frames = builder.frames()
    num_damaged = int(np.isin(stretches, list(decoder.damaged)).sum())
    if num_damaged > len(chosen) * DAMAGE_TOLERANCE:
        raise VideoError(f"{num_damaged} of its {len(chosen)} chosen frames may be damaged", VideoFault.CORRUPT)
    return frames


def _through_decord(path: str, probed: VideoProbe, indices: npt.NDArray[np.int64], config: VideoConfig) -> ByteArray:
    """The same frames, [T, H, W, 3]."""
    from museg_ray.video.decord_frames import decord_frames  # a package that others need not have

    numbers, places = np.unique(indices).tolist(), _places(indices).values()
    with closing(_ClipBuilder(len(indices), Display(), config)) as builder:
        for frame, here in zip(decord_frames(path, probed, numbers), places, strict=True):
            builder.add(frame, here)
        return builder.frames()


class _ClipBuilder:
    """Turns frames into pixels of their final size, in a thread of its own while the decoder goes on: a fifth of the
    time."""

    def __init__(self, num_frames: int, display: Display, config: VideoConfig) -> None:
        self._num_frames, self._display, self._config = num_frames, display, config
        self._frames: ByteArray | None = None  # [T, H, W, 3]
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def add(self, frame: av.VideoFrame, places: Sequence[int]) -> None:
        """Put a frame where it belongs, soon."""
        self._waiting.append(self._thread.submit(self._put, frame, places))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().result()

    def frames(self) -> ByteArray:
        """All of them.

        Raises:
            VideoError: their shape fits no size.
        """
        while self._waiting:
            self._waiting.popleft().result()
        assert self._frames is not None, "a clip has frames"
        return self._frames

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _put(self, frame: av.VideoFrame, places: Sequence[int]) -> None:
        if self._frames is None:
            height, width = self._display.size(frame)
            height, width = clip_size(height, width, self._num_frames, self._config)
            self._frames = np.empty((self._num_frames, height, width, 3), np.uint8)
        resized = _resize(self._display.pixels(frame), self._frames.shape[1:3])
        for place in places:
            self._frames[place] = resized


def _places(chosen: npt.NDArray[np.int64]) -> dict[int | None, list[int]]:
    """Where each chosen frame stands in the clip; at variable rates one may stand in several places."""
    places: dict[int | None, list[int]] = {}
    for place, frame in enumerate(chosen.tolist()):
        places.setdefault(frame, []).append(place)
    return places


def _resize(frame: ByteArray, size: tuple[int, ...]) -> ByteArray:
    """Bicubic with antialiasing, [H, W, 3] -> [*size, 3], on uint8: 25 times faster than on float32.

    Equals torchvision's v2 resize of uint8 frames.
    """
    # [1, 3, H, W], but channels last in memory.
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
