"""What a video file promises, read from its packets, and how it is shown, from its first frame."""

import gc
import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

from museg_ray.errors import VideoError, VideoFault
from museg_ray.video.container import Clock, is_plain, open_container, packets, tells_order, video_stream
from museg_ray.video.decoder import first_frame
from museg_ray.video.display import Display

CLOCK_ROUNDING_S = 0.005
"""Containers count time in steps of up to a few milliseconds."""
MISSING_TOLERANCE = 0.01
"""A file that holds less than this share below what its index or header promises was cut off."""
HEADER_SLACK_S = 0.1
"""Beside one frame more that a header may promise: many count the last frame's length, which packets do not have."""

LATE_S = 0.1
"""Less between the beginnings of sound and video is usual, and nobody's clock shows it."""


@dataclass(frozen=True, slots=True)
class VideoProbe:
    """A video stream's frames in the order of presentation."""

    average_fps: float
    """As the container tells it; 0 where it does not."""
    starts_s: npt.NDArray[np.float64]  # [N] from the first frame's start, non-decreasing
    pts: npt.NDArray[np.int64] | None
    """[N] in ticks of the stream; None where they do not tell frames apart, or not in order."""
    duration_s: float
    """From the first frame's start to the last one's end."""
    promised_s: float = 0.0
    """What the header says; 0 where it says nothing."""
    late_s: float = 0.0
    """How much later the video begins than the file, usually with its sound: a player's clock counts from there."""
    num_joints: int = 0
    """Where the file's clock begins anew."""
    is_plain: bool = True
    """Of one part, with its first track shown, upright or turned, in square, opaque pixels, by its packets' times."""
    display: Display = field(default_factory=Display)

    @property
    def notices(self) -> list[str]:
        """What somebody who watches the file would take otherwise."""
        told = []
        if self.late_s >= LATE_S:
            told.append(
                f"its video begins {self.late_s:.2f} s later than its sound: times count from the first frame, and a "
                f"player's clock shows {self.late_s:.2f} s more"
            )
        if self.num_joints:
            times = "once" if self.num_joints == 1 else f"{self.num_joints} times"
            told.append(f"its clock begins anew {times}: the parts were put one after another")
        return told

    def __post_init__(self) -> None:
        assert len(self.starts_s), "a probe of a stream without frames is an error and not a value"


class Timing(NamedTuple):
    """One frame's place in time, in ticks of its stream; None where the file does not tell."""

    pts: int | None
    duration: int


@dataclass(slots=True)
class _Held:
    """What the packets of a file were found to hold, as far as it goes."""

    timings: list[Timing] = field(default_factory=list)
    """Of the frames that are presented."""
    num_packets: int = 0
    end_s: float = 0.0
    """Where the stream ends."""
    any_end_s: float = 0.0
    """Where any stream ends."""


def probe(path: str) -> VideoProbe:
    """Read the packets of all streams, as far as the file goes, and the first frame.

    Raises:
        VideoError: no video, cut off, or without times.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        clock = Clock(container, stream)
        held = _held(container, stream, clock)
        if not held.timings:
            raise VideoError("it holds no frame that is shown, or was cut off before its index", VideoFault.CUT_OFF)
        if not clock.may_leap:  # there is no header that promises
            _check_complete(container, stream, held)
        starts_s = [float((s.start_time or 0) * s.time_base) for s in (*container.streams.audio, stream)]
        found, display = timeline(stream, held.timings), _display(path, float(stream.sample_aspect_ratio or 1))
        return replace(
            found,
            pts=found.pts if tells_order(container, stream) else None,
            promised_s=_promised_s(container, stream),
            late_s=max(0.0, starts_s[-1] - min(starts_s)),
            num_joints=clock.num_joints,
            is_plain=display.is_plain and is_plain(container, stream) and not clock.num_joints,
            display=display,
        )


def _display(path: str, pixel_shape: float) -> Display:
    display = Display.of(first_frame(path), pixel_shape)
    gc.collect(1)  # else the frame, tens of megabytes, would wait for it; the latest are quickly looked through
    return display


def promised_length(path: str) -> tuple[float, float]:
    """Length in seconds and frames a second as the header tells them, or, where it does not, the packets.

    Raises:
        VideoError: as `probe`.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        promised_s = _promised_s(container, stream)
        if promised_s and not Clock(container, stream).may_leap:
            late_s = float((stream.start_time or 0) * stream.time_base) if not stream.duration else 0.0
            return round(promised_s - late_s, 3), float(stream.average_rate or 0)
    probed = probe(path)
    return probed.duration_s, probed.average_fps


def timeline(stream: av.video.stream.VideoStream, timings: list[Timing]) -> VideoProbe:
    """Frames as they are presented.

    Raises:
        VideoError: some frames have a time and others none, or all are presented at once.
    """
    shown = sorted(timing.pts for timing in timings if timing.pts is not None)
    rate = stream.average_rate if shown else stream.guessed_rate  # of a bare stream only the codec knows the rate
    fps = float(rate or 0)
    if len(shown) == len(timings):
        ticks, tick_s = np.array(shown, np.int64), stream.time_base
        end = max((t.pts or 0) + t.duration for t in timings if t.pts == shown[-1])
    elif not shown and fps > 0:
        ticks, tick_s, end = np.arange(len(timings), dtype=np.int64), 1 / Fraction(rate), len(timings)
    else:
        raise VideoError("some of its frames have no time", VideoFault.CORRUPT)
    if len(ticks) > 1 and ticks[0] == ticks[-1]:
        raise VideoError("all its frames are presented at once", VideoFault.CORRUPT)
    starts_s = (ticks - ticks[0]) * float(tick_s)
    duration_s = _duration_s(starts_s, float((end - int(ticks[0])) * tick_s), fps)
    is_told_apart = bool(shown) and len(np.unique(ticks)) == len(ticks)
    return VideoProbe(fps, starts_s, ticks if is_told_apart else None, duration_s)


def _held(container: av.container.InputContainer, stream: av.video.stream.VideoStream, clock: Clock) -> _Held:
    held = _Held()
    for packet, is_whole in packets(container, stream, clock, with_others=True):
        is_watched = packet.stream_index == stream.index
        if packet.pts is not None:
            end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            held.any_end_s = max(held.any_end_s, end_s)
            held.end_s = max(held.end_s, end_s) if is_watched else held.end_s
        if is_watched and packet.size and is_whole:  # the last packet of all is empty
            held.num_packets += 1
            if not packet.is_discard:  # what lies before an edit list's start is decoded and never shown
                held.timings.append(Timing(packet.pts, packet.duration or 0))
    return held


def _check_complete(container: av.container.InputContainer, stream: av.video.stream.VideoStream, held: _Held) -> None:
    """Sound does not decide: it is asked only where the header names one length for all.

    Raises:
        VideoError: the file holds less than its header promises.
    """
    has_slots = container.format.name == "avi"  # it counts those that show the frame before for longer too
    if held.num_packets < stream.frames * (1 - MISSING_TOLERANCE) and not has_slots:
        raise VideoError(
            f"it is cut off: its index names {stream.frames} frames, it holds {held.num_packets}", VideoFault.CUT_OFF
        )
    start_s = (container.start_time or 0) / av.time_base
    promised_s, end_s = _promised_s(container, stream), held.end_s if _stream_s(stream) else held.any_end_s
    end_s = max(end_s, end_s - start_s)  # Matroska counts from 0, others from the first frame
    frame_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
    if end_s < promised_s * (1 - MISSING_TOLERANCE) - frame_s - HEADER_SLACK_S:
        raise VideoError(
            f"it is cut off: its header promises {promised_s:.2f} s, it holds {end_s:.2f} s", VideoFault.CUT_OFF
        )


def _promised_s(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> float:
    """The length of a stream, or else of all in the file; 0 where the header tells neither."""
    return _stream_s(stream) or (container.duration or 0) / av.time_base


def _stream_s(stream: av.video.stream.VideoStream) -> float:
    """The length of a stream as the container tells it; 0 where it does not. Matroska has it among the tags."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0.0


def _duration_s(starts_s: npt.NDArray[np.float64], end_s: float, fps: float) -> float:
    """Where the last frame ends, to the millisecond.

    A container that counts in milliseconds ends a 12 s video at 11.999 s, which would cost a frame pair: where the last
    end is frames / rate but for such rounding, as at every constant rate, the quotient is the duration. A last frame
    without a length has the usual one.
    """
    if end_s <= starts_s[-1]:
        end_s = float(starts_s[-1]) + (float(np.median(np.diff(starts_s))) if len(starts_s) > 1 else 0.0)
    if fps > 0 and abs(len(starts_s) / fps - end_s) < CLOCK_ROUNDING_S:
        end_s = len(starts_s) / fps
    if round(end_s, 3) == 0:
        raise VideoError("it lasts no time", VideoFault.TOO_SHORT)
    return round(end_s, 3)  # divisions end near, not at, 12.0
