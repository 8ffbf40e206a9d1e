"""Odd video files that play: of all codecs, containers, sizes, clocks and names. `broken_files.py` has the rest.

Every frame shows its own number, so that a test can tell whether each chosen frame is the one its time says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from museg_ray.errors import VideoFault
from tests.video.conftest import numbered_frame

Maker = Callable[[Path], Path]
"""Makes a file in an empty folder of its own."""

FPS = 10
CLOCK = Fraction(1, FPS)
MS = Fraction(1, 1000)
EVEN = tuple(number / FPS for number in range(50))
"""5 s."""
UNEVEN = tuple(np.concatenate([np.arange(40) * 0.033, 1.32 + np.arange(30) * 0.1, 4.3 + np.arange(3) * 0.7]).tolist())
"""Starts at about 30 frames a second, then at 10, then slower than the frames are chosen."""
EVERY_8_S = tuple(8.0 * number for number in range(900))
"""2 hours."""


@dataclass(frozen=True)
class Frames:
    """What a reader must find in a file."""

    starts_s: Sequence[float] = EVEN
    """Presentation time of each frame by its number."""
    duration_s: float = 5.0
    duration_tolerance_s: float = 1.01 / FPS
    """Containers need not say how long the last frame stays."""
    tolerance_s: float = 0.002
    """Of the times: containers round them."""
    first: int | None = 0
    """Number of the first frame shown, which times are counted from; None: any."""
    is_upright: bool = False
    """Higher than wide."""
    is_readable: bool = True
    """False: frames need not show their numbers."""


@dataclass(frozen=True)
class OddFile:
    """A file and what may come of reading it: its frames or one of the faults; no others."""

    name: str
    make: Maker
    frames: Frames | None = field(default_factory=Frames)
    faults: frozenset[VideoFault] = frozenset()


def write_video(
    path: Path,
    starts_s: Sequence[float] = EVEN,
    codec: str = "libx264",
    size: tuple[int, int] = (140, 56),
    pix_fmt: str = "yuv420p",
    clock: Fraction = CLOCK,
    turned: int = 0,
    mirrored: bool = False,
    sound_s: float = 0,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> Path:
    """A numbered frame of `size` (width, height) at each time.

    Args:
        clock: Time base of the encoder: the times are multiples of it.
        turned: Quarter turns counter-clockwise that a player must undo; the file says so.
        mirrored: Likewise left to right, after it.
        sound_s: Length of a second, silent stream.
    """
    width, height = size
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=FPS, options={"threads": "1", **options})
        stream.width, stream.height = size if turned % 2 == 0 else size[::-1]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = clock
        if turned or mirrored:
            stream.set_display_rotation(90 * turned, hflip=mirrored)
        sound = container.add_stream("aac", rate=8000) if sound_s else None
        for number, start_s in enumerate(starts_s):
            shown = numbered_frame(number, width, height)
            pixels = np.rot90(shown[:, ::-1] if mirrored else shown, -turned)
            container.mux(stream.encode(frame_of(pixels, start_s, clock)))
        container.mux(stream.encode())
        if sound:
            write_silence(container, sound, sound_s)
    return path


def frame_of(pixels: Any, start_s: float, clock: Fraction) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame.pts, frame.time_base = round(start_s / clock), clock
    return frame


def write_silence(container: Any, stream: Any, seconds: float) -> None:
    samples = np.zeros((1, round(8000 * seconds)), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def video(file_name: str = "video.mp4", **settings: Any) -> Maker:
    """A maker of a whole file."""
    return lambda folder: write_video(folder / file_name, **settings)


def patched(path: Path, *changes: tuple[bytes, int, bytes]) -> Path:
    """Overwrites bytes: each change names a box, how far behind its name to write, and what."""
    content = bytearray(path.read_bytes())
    for box, offset, new in changes:
        start = content.index(box) + len(box) + offset
        content[start : start + len(new)] = new
    path.write_bytes(content)
    return path


def _packets_at(starts_s: Sequence[float]) -> Maker:
    """Times that no encoder would accept; every frame is a key frame."""
    return lambda folder: _write_packets(folder / "video.mkv", starts_s)


def _write_packets(path: Path, starts_s: Sequence[float]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 140, 56, "yuv420p"
        frames = (frame_of(numbered_frame(number, 140, 56), number / FPS, CLOCK) for number in range(99))
        packets = [packet for frame, _ in zip(frames, starts_s, strict=False) for packet in stream.encode(frame)]
        packets += stream.encode()
        for packet, start_s in zip(packets, starts_s, strict=True):
            packet.time_base = MS
            packet.pts = packet.dts = round(start_s / MS)
            packet.duration = 0
            container.mux(packet)
    return path


def _two_sizes(file_name: str, codec: str) -> Maker:
    """One stream whose frames grow after 2.5 s: a new key frame with a new header, as from a broadcast or a call."""
    return lambda folder: _write_two_sizes(folder / file_name, codec)


def _write_two_sizes(path: Path, codec: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 140, 56, "yuv420p"
        stream.codec_context.time_base = CLOCK
        container.start_encoding()
        for numbers, scale in ((range(25), 1), (range(25, 50), 2)):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = 140 * scale, 56 * scale, "yuv420p"
            encoder.time_base, encoder.framerate = CLOCK, FPS
            encoder.options = {"bf": "0", "lag-in-frames": "0", "threads": "1"}
            frames = [
                frame_of(numbered_frame(number, 140 * scale, 56 * scale), number / FPS, CLOCK) for number in numbers
            ]
            for frame in [*frames, None]:
                for packet in encoder.encode(frame):
                    packet.stream, packet.time_base = stream, CLOCK
                    container.mux(packet)
    return path


def _with_cover(folder: Path) -> Path:
    """A film with a poster, which is a video stream of one frame."""
    path = folder / "video.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 400, 400, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 140, 56, "yuv420p"
        stream.codec_context.time_base = CLOCK
        container.mux(cover.encode(frame_of(np.full((400, 400, 3), 90, np.uint8), 0, CLOCK)))
        container.mux(cover.encode())
        for number in range(50):
            container.mux(stream.encode(frame_of(numbered_frame(number, 140, 56), number / FPS, CLOCK)))
        container.mux(stream.encode())
    return path


def _ten_hours_declared(folder: Path) -> Path:
    """All three headers say 10 h; the table of frames says 5 s."""
    path = write_video(folder / "video.mp4")
    scale = {box: path.read_bytes().split(box)[1][12:16] for box in (b"mvhd", b"mdhd")}
    hours = {box: (36000 * int.from_bytes(value, "big")).to_bytes(4, "big") for box, value in scale.items()}
    return patched(path, (b"mvhd", 16, hours[b"mvhd"]), (b"tkhd", 20, hours[b"mvhd"]), (b"mdhd", 16, hours[b"mdhd"]))


def _linked(folder: Path) -> Path:
    link = folder / "link.mp4"
    link.symlink_to(write_video(folder / "video.mp4"))
    return link


def _joined_midway(folder: Path) -> Path:
    """A broadcast that starts between two key frames: its first frames cannot be shown."""
    path = write_video(folder / "video.ts", g="10", bf="2")
    content = path.read_bytes()
    path.write_bytes(content[: 188 * 3] + content[len(content) // 3 // 188 * 188 :])
    return path


def _named(file_name: str) -> Maker:
    """An mp4 of another name."""
    return lambda folder: write_video(folder / "video.mp4").rename(folder / file_name)


B_FRAMES = {"g": "20", "bf": "3", "b-pyramid": "normal", "preset": "medium"}
QUIET = {"x265-params": "log-level=none:pools=none"}
FAST_VP9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}
GIF = {"file_name": "video.gif", "codec": "gif", "pix_fmt": "rgb8"}
AV1: dict[str, Any] = {"codec": "libsvtav1", "size": (140, 64), "preset": "12"}
MOV = "video.mov"
MKV = "video.mkv"
TS = "video.ts"
LONG: dict[str, Any] = {"starts_s": EVERY_8_S, "clock": Fraction(8), "size": (40, 20)}
LATE = tuple(5 + start_s for start_s in EVEN)
BEFORE_THE_CLOCK_WRAPS = tuple(95441.7 + start_s for start_s in EVEN)
"""MPEG-TS counts to 2^33 ticks, 95443.7 s, and goes on at 0."""
PAIRS = tuple(number // 2 / 5 for number in range(50))
"""Two frames at each time."""
ODDLY_TIMED = Frames(UNEVEN, UNEVEN[-1] + 0.35, 0.4, tolerance_s=0.011)
TWO_HOURS = Frames(EVERY_8_S, 7200, 8)
CORRUPT = frozenset({VideoFault.CORRUPT})

CODECS = (
    OddFile("h264 in mp4", video()),
    OddFile("b-frames", video(**B_FRAMES)),
    OddFile("b-frames in mkv", video(MKV, **B_FRAMES)),
    OddFile("b-frames in mpegts", video(TS, **B_FRAMES)),
    OddFile("b-frames across key frames", video(**{"x264-params": "open-gop=1:keyint=10:bframes=3"})),
    OddFile("h264 interlaced", video(**{"x264-params": "tff=1"})),
    OddFile("h264 of 10 bits", video(pix_fmt="yuv420p10le")),
    OddFile("hevc", video(codec="libx265", **QUIET)),
    OddFile("hevc of 10 bits in mkv", video(MKV, codec="libx265", pix_fmt="yuv420p10le", **QUIET)),
    OddFile("vp8 in webm", video("video.webm", codec="libvpx")),
    OddFile("vp9 in webm", video("video.webm", **FAST_VP9)),
    OddFile("vp9 in mp4", video(**FAST_VP9)),
    OddFile("av1 in mp4", video(**AV1)),
    OddFile("av1 of 10 bits in mkv", video(MKV, pix_fmt="yuv420p10le", **AV1)),
    OddFile("mpeg-4 part 2 in avi", video("video.avi", codec="mpeg4")),
    OddFile("avi without presentation times", video("video.avi", codec="mpeg4", bf="2")),
    OddFile("mpeg-2 in mpegts", video(TS, codec="mpeg2video", strict="unofficial")),
    OddFile("mjpeg in mov", video(MOV, codec="mjpeg", pix_fmt="yuvj420p")),
    OddFile("prores in mov", video(MOV, codec="prores", pix_fmt="yuv422p10le", size=(144, 56))),
    OddFile("wmv", video("video.wmv", codec="wmv2")),
    OddFile("ffv1 in mkv", video(MKV, codec="ffv1")),
    OddFile("transparent", video(MKV, codec="ffv1", pix_fmt="bgra")),
    OddFile("grey of 16 bits", video(MKV, codec="ffv1", pix_fmt="gray16le")),
    OddFile("gif", video(**GIF)),
)

CONTAINERS = (
    OddFile("mov", video(MOV)),
    OddFile("mkv", video(MKV)),
    OddFile("flv", video("video.flv")),
    OddFile("mpegts", video(TS)),
    OddFile("fragments", video(container_options={"movflags": "frag_keyframe+empty_moov"}, g="10")),
    OddFile("bare h264 without times", video("video.h264"), faults=CORRUPT),
    OddFile("poster before the film", _with_cover),
    OddFile("sound longer than video", video(sound_s=9)),
    OddFile("sound longer than video in mkv", video(MKV, sound_s=9)),
    OddFile("ten hours declared", _ten_hours_declared, faults=CORRUPT | {VideoFault.CUT_OFF}),
)

SIZES = (
    OddFile("odd size", video(size=(281, 57), pix_fmt="yuv444p")),
    OddFile("small size", video(size=(40, 20))),
    OddFile("tiny size", video(MKV, size=(2, 2), codec="ffv1"), Frames(is_readable=False)),
    OddFile("wide size", video(size=(1120, 16))),
    OddFile("tall size", video(size=(56, 560)), Frames(is_upright=True)),
    OddFile("rotated by 90", video(turned=1, size=(56, 140)), Frames(is_upright=True)),
    OddFile("rotated by 180", video(turned=2)),
    OddFile("rotated by 270", video(turned=3, size=(56, 140)), Frames(is_upright=True)),
    OddFile("growing frames in mpegts", _two_sizes(TS, "libx264"), faults=CORRUPT),
    OddFile("growing frames in webm", _two_sizes("video.webm", "libvpx-vp9"), faults=CORRUPT),
)

CLOCKS = (
    OddFile("variable rate", video(starts_s=UNEVEN, clock=MS), ODDLY_TIMED),
    OddFile("variable rate in mkv", video(MKV, starts_s=UNEVEN, clock=MS), ODDLY_TIMED),
    OddFile("variable rate with b-frames", video(starts_s=UNEVEN, clock=MS, **B_FRAMES), ODDLY_TIMED),
    OddFile("gif with odd delays", video(starts_s=UNEVEN, clock=Fraction(1, 100), **GIF), ODDLY_TIMED),
    OddFile("equal times", _packets_at(PAIRS), Frames(PAIRS, duration_tolerance_s=0.3)),
    OddFile("two hours", video(**LONG), TWO_HOURS),
    OddFile("two hours in mkv", video(MKV, **LONG), TWO_HOURS),
    OddFile("two frames", video(starts_s=EVEN[:2]), Frames(EVEN[:2], 0.2)),
    OddFile("three frames", video(starts_s=EVEN[:3]), Frames(EVEN[:3], 0.3)),
    OddFile("late start in mp4", video(starts_s=LATE)),
    OddFile("late start in mkv", video(MKV, starts_s=LATE)),
    OddFile("negative start", video(starts_s=[start_s - 1 for start_s in EVEN]), Frames(duration_s=4, first=10)),
    OddFile("clock that wraps", video(TS, starts_s=BEFORE_THE_CLOCK_WRAPS)),
    OddFile("starts between key frames", _joined_midway, Frames(duration_s=3, duration_tolerance_s=1.2, first=None)),
)

NAMES = (
    OddFile("mp4 named txt", _named("video.txt")),
    OddFile("mp4 named avi", _named("video.avi")),
    OddFile("mp4 named jpg", _named("video.jpg")),
    OddFile("mp4 named like many pictures", _named("video%03d.jpg"), faults=frozenset({VideoFault.NOT_A_VIDEO})),
    OddFile("mp4 without extension", _named("video")),
    OddFile("mp4 named like an option", _named("-i.mp4")),
    OddFile("mp4 named like a URL", _named("http:video.mp4")),
    OddFile("name with spaces and a line break", _named(" a video\n'of' \"mine\" .mp4")),
    OddFile("name not ascii", _named("ünï çödé 视频 🎬.mp4")),
    OddFile("name not utf-8", _named("\udcff.mp4"), faults=frozenset({VideoFault.UNREACHABLE})),
    OddFile("link to a video", _linked),
)

ODD_FILES = (*CODECS, *CONTAINERS, *SIZES, *CLOCKS, *NAMES)
