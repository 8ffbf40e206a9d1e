"""Files as people report them: joined recordings, mirrors, pixels that are not square, dropped frames, several tracks.

They play; what each must give is what a player shows.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.video.conftest import numbered_frame
from tests.video.odd_files import (
    B_FRAMES,
    CLOCK,
    CORRUPT,
    EVEN,
    FAST_VP9,
    FPS,
    MKV,
    MS,
    TS,
    Frames,
    Maker,
    OddFile,
    frame_of,
    video,
    write_silence,
    write_video,
)

TWICE = tuple(number / FPS for number in range(100))
JOINED = Frames(TWICE, 10.0)
FASTER = Frames((*EVEN, *(5 + number / 25 for number in range(50))), 7.0)
SLOW = tuple(float(number) for number in range(20))
"""One frame a second: the last one's length is a twentieth of all."""
DROPPED = tuple(number / FPS for number in range(100) if number % 20 != 10)
"""An AVI counts slots, of which these leave 5 in 100 empty."""


def joined(name: str, first_s: float, second_s: float, second_fps: int = FPS, **settings: Any) -> Maker:
    """Two recordings of 50 frames in one file, whose clocks start at these times; the second one's numbers go on."""

    def make(folder: Path) -> Path:
        suffix = Path(name).suffix
        parts = [
            _write_part(folder / f"0{suffix}", 0, first_s, FPS, settings),
            _write_part(folder / f"1{suffix}", 50, second_s, second_fps, settings),
        ]
        (folder / name).write_bytes(b"".join(part.read_bytes() for part in parts))
        return folder / name

    return make


def _write_part(path: Path, first: int, start_s: float, fps: int, settings: dict[str, str]) -> Path:
    options = {"codec": "libx264", "threads": "1"} | settings
    with av.open(str(path), "w") as container:
        stream = container.add_stream(options.pop("codec"), rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 64, "yuv420p"
        stream.codec_context.time_base = clock = Fraction(1, fps)
        for place in range(50):
            pixels = numbered_frame(first + place, 160, 64)
            container.mux(stream.encode(frame_of(pixels, start_s + place / fps, clock)))
        container.mux(stream.encode())
    return path


def with_stream(name: str, change: Callable[[Any], None], size: tuple[int, int] = (140, 56), **settings: Any) -> Maker:
    """A file whose stream is changed before its frames are written."""

    def make(folder: Path) -> Path:
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(settings.get("codec", "libx264"), rate=FPS, options={"threads": "1"})
            stream.width, stream.height, stream.pix_fmt = *size, settings.get("pix_fmt", "yuv420p")
            stream.codec_context.time_base = CLOCK
            change(stream)
            for number in range(50):
                container.mux(stream.encode(frame_of(numbered_frame(number, *size), number / FPS, CLOCK)))
            container.mux(stream.encode())
        return folder / name

    return make


def _pixels_of(shape: str) -> Callable[[Any], None]:
    def change(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(shape)

    return change


def _mirrored(turned: int) -> Maker:
    return video(turned=turned, mirrored=True, size=(56, 140) if turned % 2 else (140, 56))


def _two_tracks(folder: Path) -> Path:
    """The first is a slide of another size; the second is what the container says to show."""
    path = folder / MKV
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=FPS) for _ in range(2)]
        for stream, size in zip(streams, ((56, 140), (140, 56)), strict=True):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.codec_context.time_base = CLOCK
        streams[0].disposition, streams[1].disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for number in range(50):
            if number in (0, 25):
                container.mux(streams[0].encode(frame_of(numbered_frame(999, 56, 140), number / FPS, CLOCK)))
            container.mux(streams[1].encode(frame_of(numbered_frame(number, 140, 56), number / FPS, CLOCK)))
        for stream in streams:
            container.mux(stream.encode())
    return path


def _copied(name: str, source: Maker) -> Maker:
    """The packets of a file in another container, as `ffmpeg -c copy` puts them there."""

    def make(folder: Path) -> Path:
        with av.open(str(source(folder))) as old, av.open(str(folder / name), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(old.streams.video[0]):
                if packet.size:
                    packet.stream, packet.duration = stream, 0
                    new.mux(packet)
        return folder / name

    return make


def _with_mp3(folder: Path) -> Path:
    """Sound at 16 kHz, whose codec has a delay that the header counts."""
    path = folder / MKV
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 140, 56, "yuv420p"
        stream.codec_context.time_base = CLOCK
        sound = container.add_stream("libmp3lame", rate=16000)
        for number in range(50):
            container.mux(stream.encode(frame_of(numbered_frame(number, 140, 56), number / FPS, CLOCK)))
        container.mux(stream.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 80000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def _video_after_its_sound(folder: Path) -> Path:
    path = folder / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 140, 56, "yuv420p"
        stream.codec_context.time_base = CLOCK
        sound = container.add_stream("aac", rate=8000)
        for number in range(50):
            container.mux(stream.encode(frame_of(numbered_frame(number, 140, 56), 2 + number / FPS, CLOCK)))
        container.mux(stream.encode())
        write_silence(container, sound, 7)
    return path


NOT_CODED = b"\x00\x00\x01\xb6\x50\x00\x00"
"""A placeholder: a VOP that says that nothing is coded."""


def _packed(folder: Path) -> Path:
    """An AVI of a frame a chunk, in which a B-frame lies in the chunk before its own, which holds a placeholder."""
    plain = write_video(folder / "plain.avi", codec="mpeg4", bf="1", g="12")
    path = folder / "video.avi"
    with av.open(str(plain)) as old, av.open(str(path), "w") as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        chunks = [bytes(packet) for packet in old.demux(source) if packet.size]
        for place, content in enumerate(_pack(chunks)):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, CLOCK, place, place
            packet.is_keyframe = b"\x00\x00\x01\xb0" in content
            new.mux(packet)
    return path


def _pack(chunks: list[bytes]) -> list[bytes]:
    """Each B-VOP goes into the chunk of the VOP before it in the file, and leaves a placeholder."""
    packed: list[bytes] = []
    for chunk in chunks:
        is_b = chunk[chunk.index(b"\x00\x00\x01\xb6") + 4] >> 6 == 2
        if is_b:
            packed[-1] += chunk
            packed.append(NOT_CODED)
        else:
            packed.append(re.sub(rb"Lavc[\d.]+", b"DivX503b1393p", chunk))
    return packed


REAL_FILES = (
    OddFile("joined, the clock starts again", joined(TS, 0, 0), JOINED),
    OddFile("joined, the clock steps back by 100 s", joined(TS, 100, 0), JOINED),
    OddFile("joined, the clock steps back by 30 s", joined(TS, 30, 0), JOINED),
    OddFile("joined, the clock steps back by 1 s", joined(TS, 0, 4), JOINED),
    OddFile("joined, the clock leaps by an hour", joined(TS, 0, 3600), JOINED),
    OddFile("joined with b-frames", joined(TS, 0, 0, **B_FRAMES), JOINED),
    OddFile("joined, the second faster and shown sooner", joined(TS, 0, 0, 25, **B_FRAMES), FASTER),
    OddFile("joined webm", joined("video.webm", 0, 0, codec="libvpx"), JOINED),
    OddFile("joined mkv with b-frames", joined(MKV, 0, 0, **B_FRAMES), None, CORRUPT),
    OddFile("joined vob", joined("video.vob", 0, 0, codec="mpeg2video", strict="unofficial"), JOINED),
    OddFile("joined mpeg", joined("video.mpg", 0, 0, codec="mpeg2video", strict="unofficial", bf="2"), JOINED),
    *(
        OddFile(f"mirrored, turned by {90 * turned}", _mirrored(turned), Frames(is_upright=turned % 2 == 1))
        for turned in range(4)
    ),
    OddFile("pixels of 2 to 1", with_stream("video.mp4", _pixels_of("2/1"), (56, 84))),
    OddFile("pixels of 1 to 2", with_stream("video.mp4", _pixels_of("1/2"), (140, 112)), Frames(is_upright=True)),
    OddFile("another track is the default", _two_tracks),
    OddFile("avi of dropped frames", video("video.avi", starts_s=DROPPED, bf="0"), Frames(DROPPED, 10.0)),
    OddFile("h264 with b-frames in avi", video("video.avi", **B_FRAMES)),
    OddFile("slow flv", video("video.flv", starts_s=SLOW, clock=Fraction(1)), Frames(SLOW, 20.0, 1.01)),
    OddFile(
        "slow webm that was copied",
        _copied("copy.webm", video("video.webm", starts_s=SLOW, clock=MS, **FAST_VP9)),
        Frames(SLOW, 20.0, 1.01),
    ),
    OddFile("mp3 of 16 kHz in mkv", _with_mp3),
    OddFile("video after its sound", _video_after_its_sound),
    OddFile("packed b-frames in avi", _packed),
)
