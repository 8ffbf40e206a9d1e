"""A video file opened: the stream to watch, and its packets on one clock."""

from collections import deque
from collections.abc import Iterator

import av

from museg_ray.errors import VideoError, VideoFault

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,f4v,gif,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,mxf,rm,dv,"
    "nut,yuv4mpegpipe,wtv,wav,mp3,aac,flac"
)
"""Containers of one video each, and of sound, for a truer reason. FFmpeg also opens lists and patterns that name other
files: these would be shown in the place of the file that was asked for."""
MAY_LEAP = 0x0200
"""FFmpeg's AVFMT_TS_DISCONT: of containers of broadcasts, whose clock may start anew at any place."""
CLOCK_BITS = 33
"""Of the clock in these containers; FFmpeg takes what lies before the first packet for a clock that ran over."""
STEP_BACK_S, LEAP_S = 0.1, 10.0
"""What ffmpeg takes for another clock: decoding times that go back by more, and leaps forward in a broadcast."""
NO_DECODING_TIMES = ("matroska,webm", "asf", "ogg")
"""FFmpeg works them out of the times of presentation; where those step back, and frames are reordered, wrongly."""
DOUBTED_PACKETS = 2
"""Before a joint; FFmpeg's parsers are a packet behind."""
SEES_THROUGH = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

av.logging.set_level(None)  # FFmpeg's lines break into the display; VideoError has the reason


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
    """The stream to watch, as ffmpeg chooses it: the container's default before the others. A cover picture is none.

    Raises:
        VideoError: there is none.
    """
    streams = video_tracks(container)
    if not streams or streams[0].codec_context is None:
        raise VideoError("it has no video stream", VideoFault.NO_VIDEO_STREAM)
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    # Without `explode` a decoder conceals errors and most are reported to nobody.
    stream.codec_context.options = {"err_detect": "explode"}
    stream.codec_context.thread_count = 1
    stream.thread_type = "NONE"
    return stream


def video_tracks(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """Without cover pictures."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def decoding_context(stream: av.video.stream.VideoStream) -> av.VideoCodecContext:
    """The stream's own, but where a WebM is see-through: FFmpeg's decoders of VP8 and VP9 leave that out."""
    codec = stream.codec_context.name
    if stream.metadata.get("ALPHA_MODE", stream.metadata.get("alpha_mode")) != "1" or codec not in SEES_THROUGH:
        return stream.codec_context
    context = av.CodecContext.create(SEES_THROUGH[codec], "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_count = 1
    return context


def tells_order(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> bool:
    """Whether the packets' times are those of their frames. An AVI has none of presentation: where frames come in
    another order than they are shown, or two lie in one packet, a packet's place is that of another frame."""
    return not (container.format.name == "avi" and stream.codec_context.has_b_frames)


def is_plain(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> bool:
    """Whether its first track is shown, with square, opaque pixels and the times of its packets."""
    is_opaque = decoding_context(stream) is stream.codec_context
    is_first = stream == video_tracks(container)[0]
    return is_first and is_opaque and (stream.sample_aspect_ratio or 1) == 1 and tells_order(container, stream)


class Clock:
    """Puts the packets of a stream on one clock, where a recording was joined from several, as `ffmpeg -c copy` does:
    what comes after a joint follows what came before it. Invariant: decoding times never go back by more than
    `STEP_BACK_S`, and a part begins no earlier than the one before it ends; else frames of several parts would be shown
    in each other's midst.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> None:
        self._has_slots = container.format.name == "avi"
        self.may_leap = bool(container.format.flags & MAY_LEAP)
        self._tick_s = float(stream.time_base)
        self._usual_ticks = int(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0
        self._guesses = container.format.name in NO_DECODING_TIMES and bool(stream.codec_context.has_b_frames)
        self._shift = self._end = 0
        self._last: int | None = None
        self._last_ticks = 0
        self.num_joints = 0
        """So far."""

    def set(self, packet: av.Packet) -> bool:
        """Change a packet's times; whether a part begins with it.

        Raises:
            VideoError: one does, and where the part before it ends cannot be told.
        """
        if packet.dts is None:
            return False
        if self._has_slots:  # the n-th is shown for the n-th frame; FFmpeg makes up times that are those of the next
            packet.pts = packet.dts
        if self.may_leap and packet.pts is not None:
            half = 1 << CLOCK_BITS - 1
            packet.pts = packet.dts + (packet.pts - packet.dts + half) % (2 * half) - half
        dts, is_joint = packet.dts + self._shift, False
        if self._last is not None:
            expected = self._last + self._last_ticks
            leaps = self.may_leap and abs(dts - expected) * self._tick_s > LEAP_S
            is_joint = leaps or (self._last - dts) * self._tick_s > STEP_BACK_S
            if is_joint:
                self._join(packet, expected)
                dts = packet.dts + self._shift
        self._last, self._last_ticks = dts, packet.duration or self._usual_ticks
        if self._shift:
            packet.pts = None if packet.pts is None else packet.pts + self._shift
            packet.dts = dts
        if packet.pts is not None:
            self._end = max(self._end, packet.pts + self._last_ticks)
        return is_joint

    def _join(self, packet: av.Packet, expected: int) -> None:
        if self._guesses:
            raise VideoError("its clock goes back, and the order of its frames with it", VideoFault.CORRUPT)
        self._shift = expected - packet.dts
        if packet.pts is not None:  # of another encoder, whose frames may be shown sooner after they are decoded
            self._shift = max(self._shift, self._end - packet.pts)
        self.num_joints += 1


def packets(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, clock: Clock, with_others: bool = False
) -> Iterator[tuple[av.Packet, bool]]:
    """The stream's packets on one clock, as far as the file goes, each with whether it is whole.

    The last one is empty and flushes the decoder. Those right before a joint are whole though FFmpeg, which finds that
    the next part does not count on from them, says otherwise; a decoder tells if they are not.

    Args:
        with_others: those of the other streams too, for what they tell of the file.
    """
    waiting = deque[tuple[av.Packet, bool]]()
    try:
        for packet in container.demux() if with_others else container.demux(stream):
            if packet.stream != stream:  # an empty one has its index wrong
                yield packet, True
                continue
            if clock.set(packet):
                yield from ((before, True) for before, _ in waiting)
                waiting.clear()
            waiting.append((packet, not packet.is_corrupt))
            if len(waiting) > DOUBTED_PACKETS:
                yield waiting.popleft()
        yield from waiting
    except av.FFmpegError:
        yield from waiting
        yield av.Packet(0), True
