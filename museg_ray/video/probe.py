"""What a video file promises, read from its packets without decoding a frame."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from museg_ray.errors import VideoError, VideoFault

CLOCK_ROUNDING_S = 0.005
"""Containers count time in steps of up to a few milliseconds."""
MISSING_TOLERANCE = 0.01
"""A file that holds less than this share below what its index or header promises was cut off."""

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,f4v,gif,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,mxf,rm,dv,"
    "nut,yuv4mpegpipe,wtv,wav,mp3,aac,flac"
)
"""Containers of one video each, and of sound, for a truer reason. FFmpeg also opens lists and patterns that name other
files: these would be shown in the place of the file that was asked for."""

av.logging.set_level(None)  # FFmpeg's lines break into the display; VideoError has the reason


@dataclass(frozen=True, slots=True)
class VideoProbe:
    """A video stream's frames in the order of presentation."""

    average_fps: float
    """As the container tells it; 0 where it does not."""
    starts_s: npt.NDArray[np.float64]  # [N] from the first frame's start, non-decreasing
    pts: npt.NDArray[np.int64] | None  # [N] in ticks of the stream; None where they do not tell frames apart
    duration_s: float
    """From the first frame's start to the last one's end."""

    def __post_init__(self) -> None:
        assert len(self.starts_s), "a probe of a stream without frames is an error and not a value"


@dataclass(frozen=True, slots=True)
class Timing:
    """One frame's place in time, in ticks of its stream; None where the file does not tell."""

    pts: int | None
    duration: int


def open_container(path: str) -> av.container.InputContainer:
    """Open a file for reading; its streams decode in the caller's thread alone.

    Raises:
        VideoError: it is no video file.
    """
    try:
        # genpts: old AVI files give decoding times only.
        options = {"fflags": "+genpts", "format_whitelist": FORMATS, "protocol_whitelist": "file"}
        return av.open(path, options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        said = error.strerror if isinstance(error, av.FFmpegError) else str(error)
        raise VideoError(
            f"it is not a video file, or it was cut off before its index ({said})", VideoFault.NOT_A_VIDEO
        ) from None


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The stream to watch; a cover picture is none.

    Raises:
        VideoError: there is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams or streams[0].codec_context is None:
        raise VideoError("it has no video stream", VideoFault.NO_VIDEO_STREAM)
    stream = streams[0]
    # Without `explode` a decoder conceals errors and most are reported to nobody.
    stream.codec_context.options = {"err_detect": "explode"}
    stream.codec_context.thread_count = 1
    stream.thread_type = "NONE"
    return stream


def probe(path: str) -> VideoProbe:
    """Read the packets of all streams, as far as the file goes.

    Raises:
        VideoError: no video, cut off, or without times.
    """
    with open_container(path) as container:
        stream = video_stream(container)
        timings, num_packets, end_s = _packet_timings(container, stream)
        if not timings:
            raise VideoError("it holds no frame that is shown, or was cut off before its index", VideoFault.CUT_OFF)
        _check_complete(container, stream, num_packets, end_s)
        return timeline(stream, timings)


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


def _packet_timings(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> tuple[list[Timing], int, float]:
    """The stream's frames that are presented, its packets, and where the last packet of any stream ends, seconds."""
    timings, num_packets, end_s = [], 0, 0.0
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            is_whole = packet.size and not packet.is_corrupt  # the last packet of all is empty
            if packet.stream_index == stream.index and is_whole:
                num_packets += 1
                if not packet.is_discard:  # what lies before an edit list's start is decoded and never shown
                    timings.append(Timing(packet.pts, packet.duration or 0))
    except av.FFmpegError:
        pass  # a file that breaks off: what it holds until there is compared with what it promises
    return timings, num_packets, end_s


def _check_complete(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, num_packets: int, end_s: float
) -> None:
    if num_packets < stream.frames * (1 - MISSING_TOLERANCE):
        raise VideoError(
            f"it is cut off: its index names {stream.frames} frames, it holds {num_packets}", VideoFault.CUT_OFF
        )
    start_s = (container.start_time or 0) / av.time_base
    promised_s = (container.duration or 0) / av.time_base
    held_s = max(end_s, end_s - start_s)  # Matroska counts from 0, others from the first frame
    if held_s < promised_s * (1 - MISSING_TOLERANCE) - CLOCK_ROUNDING_S:
        raise VideoError(
            f"it is cut off: its header promises {promised_s:.2f} s, it holds {held_s:.2f} s", VideoFault.CUT_OFF
        )


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
