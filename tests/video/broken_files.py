"""Files that make no clip, or only just: cut, damaged, lying, no videos at all, and paths that lead nowhere."""

import os
import socket
import zipfile
from collections.abc import Callable
from math import inf
from pathlib import Path

import av
import numpy as np

from museg_ray.errors import VideoFault
from tests.video.odd_files import (
    AV1,
    EVEN,
    FAST_VP9,
    FPS,
    GIF,
    MS,
    QUIET,
    Frames,
    Maker,
    OddFile,
    frame_of,
    patched,
    video,
    write_silence,
    write_video,
)

ANY_DAMAGE = frozenset({VideoFault.CORRUPT, VideoFault.CUT_OFF})
ANY_LIE = ANY_DAMAGE | {
    VideoFault.NOT_A_VIDEO,
    VideoFault.NO_VIDEO_STREAM,
    VideoFault.TOO_SHORT,
    VideoFault.TOO_ELONGATED,
}
NO_INDEX = frozenset({VideoFault.NOT_A_VIDEO, VideoFault.NO_VIDEO_STREAM, VideoFault.CUT_OFF})
NO_SUCH = frozenset({VideoFault.MISSING, VideoFault.UNREACHABLE})
UNNOTICED = Frames(is_readable=False)
"""These formats have nothing that tells a decoder of damage: times and sizes are right, pictures need not be."""
ANY_TIMES = Frames(duration_tolerance_s=inf, tolerance_s=inf, first=None, is_readable=False)
"""Headers whose lies nothing contradicts."""
SHORTENED = Frames(duration_s=2.5, duration_tolerance_s=1.5)
"""Formats that promise no length: what is left is a whole video."""


def bad(name: str, make: Maker, *faults: VideoFault) -> OddFile:
    return OddFile(name, make, None, frozenset(faults))


def content(data: bytes, file_name: str = "video.mp4") -> Maker:
    """A maker of a file of these bytes."""

    def make(folder: Path) -> Path:
        (folder / file_name).write_bytes(data)
        return folder / file_name

    return make


def changed(make: Maker, change: Callable[[bytes], bytes]) -> Maker:
    """A maker of what `change` leaves of a file."""

    def make_changed(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make_changed


def cut(make: Maker, share: float) -> Maker:
    """Only the first part of a file."""
    return changed(make, lambda whole: whole[: round(len(whole) * share)])


def cut_in(box: bytes, share: float) -> Maker:
    """An mp4 whose index comes first, cut within one of its boxes."""

    def shorten(whole: bytes) -> bytes:
        start = whole.index(box) - 4
        size = int.from_bytes(whole[start : start + 4], "big")
        return whole[: min(start + 8 + round((size - 8) * share), start + size - 1)]

    return changed(INDEX_FIRST, shorten)


def flipped(make: Maker, seed: int, start: bytes, end: bytes | None = None, num_bytes: int = 3) -> Maker:
    """A file with some bytes changed between two marks."""

    def damage(whole: bytes) -> bytes:
        random = np.random.default_rng(seed)
        first = whole.index(start) + len(start)
        last = whole.index(end, first) - 4 if end else len(whole)
        damaged = bytearray(whole)
        for place in random.integers(first, last, num_bytes):
            damaged[place] ^= int(random.integers(1, 256))
        return bytes(damaged)

    return changed(make, damage)


def flips(
    name: str,
    make: Maker,
    num_seeds: int,
    frames: Frames,
    start: bytes,
    end: bytes | None = None,
    faults: frozenset[VideoFault] = ANY_DAMAGE,
) -> list[OddFile]:
    """The same file with different bytes changed."""
    return [OddFile(f"{name}, {seed}", flipped(make, seed, start, end), frames, faults) for seed in range(num_seeds)]


def replaced(make: Maker, from_share: float, fill: Callable[[int], bytes]) -> Maker:
    """An mp4 whose frames are lost from some place on, while its index, at the end, is whole."""

    def replace(whole: bytes) -> bytes:
        end = whole.index(b"moov") - 4
        start = whole.index(b"mdat") + 4
        start += round((end - start) * from_share)
        return whole[:start] + fill(end - start) + whole[end:]

    return changed(make, replace)


def _sound_only(file_name: str) -> Maker:
    def make(folder: Path) -> Path:
        with av.open(str(folder / file_name), "w") as container:
            codec = "pcm_s16le" if file_name.endswith("wav") else "aac"
            write_silence(container, container.add_stream(codec, rate=8000), 5)
        return folder / file_name

    return make


def _no_frames(folder: Path) -> Path:
    """A recording that ended before its first frame."""
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return folder / "video.mp4"


def _picture(file_name: str, codec: str, pix_fmt: str) -> Maker:
    def make(folder: Path) -> Path:
        encoder = av.CodecContext.create(codec, "w")
        encoder.width, encoder.height, encoder.pix_fmt = 64, 64, pix_fmt
        encoder.time_base = MS
        frame = frame_of(np.zeros((64, 64, 3), np.uint8), 0, MS).reformat(format=pix_fmt)
        return content(b"".join(map(bytes, [*encoder.encode(frame), *encoder.encode()])), file_name)(folder)

    return make


def _list_of_videos(text: str) -> Maker:
    """A play list: a reader that follows it shows another file's frames under this file's name."""

    def make(folder: Path) -> Path:
        write_video(folder / "other.mp4")
        write_video(folder / "other.ts")
        return content(text.encode())(folder)

    return make


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "video.mp4", "w") as archive:
        archive.write(write_video(folder / "inside.mp4"), "inside.mp4")
    return folder / "video.mp4"


def _ten_hours_in_mkv(folder: Path) -> Path:
    """The header's duration, a float of 64 bits in milliseconds, says 10 h: as good as cut off."""
    path = write_video(folder / "video.mkv")
    return patched(path, (b"\x44\x89\x88", 0, np.array(36e6, ">f8").tobytes()))


def _encrypted(folder: Path) -> Path:
    """Protected by a key that nobody has."""
    protection = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    return write_video(folder / "video.mp4", container_options=protection)


def _unknown_codec(folder: Path) -> Path:
    return patched(write_video(folder / "video.mp4"), (b"stsd", 12, b"zzzz"))


def _many_samples(folder: Path) -> Path:
    """The index claims 268 million frames of one size."""
    path = write_video(folder / "video.mp4")
    return patched(path, (b"stsz", 4, (100).to_bytes(4, "big") + (0x0FFFFFFF).to_bytes(4, "big")))


def _offset_beyond(folder: Path) -> Path:
    """The index places the frames a gigabyte further on."""
    return patched(write_video(folder / "video.mp4"), (b"stco", 8, (1 << 30).to_bytes(4, "big")))


def _all_at_once(folder: Path) -> Path:
    """The index gives each frame a length of 0."""
    path = write_video(folder / "video.mp4", bf="0")
    return patched(path, (b"stts", 12, bytes(4)))


def _link(target: str) -> Maker:
    def make(folder: Path) -> Path:
        (folder / "link.mp4").symlink_to(target)
        return folder / "link.mp4"

    return make


def _directory(folder: Path) -> Path:
    (folder / "video.mp4").mkdir()
    return folder / "video.mp4"


def _pipe(folder: Path) -> Path:
    """Nobody writes to it: who opens it waits for ever."""
    os.mkfifo(folder / "video.mp4")
    return folder / "video.mp4"


def _socket(folder: Path) -> Path:
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("video.mp4")
    finally:
        os.chdir(here)
    return folder / "video.mp4"


def _forbidden(folder: Path) -> Path:
    path = write_video(folder / "video.mp4")
    path.chmod(0)
    return path


def _in_a_forbidden_folder(folder: Path) -> Path:
    (folder / "inner").mkdir()
    path = write_video(folder / "inner" / "video.mp4")
    (folder / "inner").chmod(0)
    return path


INDEX_FIRST = video(container_options={"movflags": "faststart"})
INDEX_LAST = video()
AVI = video("video.avi", codec="mpeg4")
CLUSTERS = video("video.mkv", g="5", container_options={"cluster_time_limit": "500"})
FRAGMENTS = video(g="10", container_options={"movflags": "frag_keyframe+empty_moov"})
TEXT = b"This is no video.\n" * 100
PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>" + TEXT + b"</body></html>"
CONCAT = "ffconcat version 1.0\nfile other.mp4\n"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5.0,\nother.ts\n#EXT-X-ENDLIST\n"

CUT = (
    *[bad(f"cut in its index at {share:.0%}", cut_in(b"moov", share), *NO_INDEX) for share in (0, 0.5, 0.99)],
    *[
        bad(f"cut in its frames at {share:.0%}", cut_in(b"mdat", share), VideoFault.CUT_OFF)
        for share in (0, 0.1, 0.25, 0.5, 0.75, 0.9)
    ],
    OddFile("cut by one byte", cut_in(b"mdat", 1), Frames(), frozenset({VideoFault.CUT_OFF})),
    *[
        bad(f"cut before its index at {share:.0%}", cut(INDEX_LAST, share), VideoFault.NOT_A_VIDEO)
        for share in (0.01, 0.3, 0.6)
    ],
    bad("cut in its last part, the index", cut(INDEX_LAST, 0.9), *NO_INDEX),
    bad("cut mkv at 5%", cut(CLUSTERS, 0.05), *NO_INDEX),
    *[bad(f"cut mkv at {share:.0%}", cut(CLUSTERS, share), VideoFault.CUT_OFF) for share in (0.3, 0.6, 0.8)],
    bad("cut webm", cut(video("video.webm", **FAST_VP9), 0.6), VideoFault.CUT_OFF),
    bad("cut avi", cut(AVI, 0.8), VideoFault.CUT_OFF),
    OddFile("cut mpegts", cut(video("video.ts", g="5"), 0.5), SHORTENED, ANY_DAMAGE),
    OddFile("cut gif", cut(video(**GIF), 0.5), SHORTENED, ANY_DAMAGE),
    OddFile("cut fragments", cut(FRAGMENTS, 0.5), SHORTENED, ANY_DAMAGE),
)

DAMAGED = (
    *flips("flipped h264 in mp4", INDEX_LAST, 6, Frames(), b"mdat", b"moov"),
    *flips("flipped h264 in mkv", CLUSTERS, 4, Frames(), b"\x1f\x43\xb6\x75"),
    *flips("flipped mpeg-4 in avi", AVI, 4, Frames(), b"movi", b"idx1"),
    *flips("flipped av1 in mp4", video(**AV1), 3, Frames(), b"mdat", b"moov"),
    *flips("flipped hevc in mp4", video(codec="libx265", **QUIET), 4, UNNOTICED, b"mdat", b"moov"),
    *flips("flipped vp9 in mp4", video(**FAST_VP9), 4, UNNOTICED, b"mdat", b"moov"),
    *flips("flipped index", INDEX_LAST, 6, ANY_TIMES, b"moov", faults=ANY_LIE),
    bad("frames of noise", replaced(video(), 0, lambda size: np.random.default_rng(0).bytes(size)), VideoFault.CORRUPT),
    bad("frames of zeros", replaced(video(), 0, bytes), VideoFault.CORRUPT),
    bad("second half of zeros", replaced(video(), 0.5, bytes), *ANY_DAMAGE),
    bad("encrypted", _encrypted, VideoFault.CORRUPT),
    bad("unknown codec", _unknown_codec, VideoFault.CORRUPT, VideoFault.NO_VIDEO_STREAM),
    OddFile("claims millions of frames", _many_samples, ANY_TIMES, ANY_LIE),
    bad("gif of 4 gigapixels", changed(video(**GIF), lambda whole: whole[:6] + b"\xff" * 4 + whole[10:]), *ANY_LIE),
    bad("frames beyond the end", _offset_beyond, VideoFault.CUT_OFF),
    OddFile("ten hours declared in mkv", _ten_hours_in_mkv, Frames(), frozenset({VideoFault.CUT_OFF})),
)

NO_VIDEOS = (
    bad("empty", content(b""), VideoFault.EMPTY),
    bad("one byte", content(b"\0"), VideoFault.NOT_A_VIDEO),
    bad("text", content(TEXT), VideoFault.NOT_A_VIDEO),
    bad("error page", content(PAGE), VideoFault.NOT_A_VIDEO),
    bad("zeros", content(bytes(1 << 16)), VideoFault.NOT_A_VIDEO),
    bad("noise", content(np.random.default_rng(0).bytes(1 << 14)), VideoFault.NOT_A_VIDEO),
    bad("zip", _zip, VideoFault.NOT_A_VIDEO),
    bad("list of videos", _list_of_videos(CONCAT), VideoFault.NOT_A_VIDEO),
    bad("list of segments", _list_of_videos(HLS), VideoFault.NOT_A_VIDEO),
    bad("png", _picture("video.mp4", "png", "rgb24"), VideoFault.NOT_A_VIDEO, VideoFault.TOO_SHORT),
    bad("jpeg", _picture("video.jpg", "mjpeg", "yuvj420p"), VideoFault.NOT_A_VIDEO, VideoFault.TOO_SHORT),
    bad("sound only", _sound_only("video.mp4"), VideoFault.NO_VIDEO_STREAM),
    bad("sound only in mkv", _sound_only("video.mkv"), VideoFault.NO_VIDEO_STREAM),
    bad("sound only in wav", _sound_only("video.wav"), VideoFault.NO_VIDEO_STREAM),
    bad("no frames", _no_frames, VideoFault.TOO_SHORT, VideoFault.NO_VIDEO_STREAM, VideoFault.NOT_A_VIDEO),
    bad("one frame", video(starts_s=EVEN[:1]), VideoFault.TOO_SHORT),
    bad("one frame in mkv", video("video.mkv", starts_s=EVEN[:1]), VideoFault.TOO_SHORT),
    bad("one frame in gif", video(starts_s=EVEN[:1], **GIF), VideoFault.TOO_SHORT),
    bad("all frames at once", _all_at_once, VideoFault.TOO_SHORT, VideoFault.CORRUPT),
    bad("too wide", video(size=(2100, 10)), VideoFault.TOO_ELONGATED),
    bad("too tall", video(size=(10, 2100)), VideoFault.TOO_ELONGATED),
)

PATHS = (
    bad("missing", lambda folder: folder / "video.mp4", VideoFault.MISSING),
    bad("missing folder", lambda folder: folder / "folder" / "video.mp4", VideoFault.MISSING),
    bad("file as a folder", lambda folder: content(TEXT)(folder) / "video.mp4", *NO_SUCH),
    bad("name too long", lambda folder: folder / ("long" * 100 + ".mp4"), *NO_SUCH),
    bad("name with a zero byte", lambda folder: folder / "video\0.mp4", *NO_SUCH),
    bad("link to itself", _link("link.mp4"), *NO_SUCH),
    bad("link to nothing", _link("nothing.mp4"), VideoFault.MISSING),
    bad("folder", _directory, VideoFault.UNREACHABLE, VideoFault.NOT_A_VIDEO),
    bad("pipe", _pipe, VideoFault.UNREACHABLE),
    bad("socket", _socket, VideoFault.UNREACHABLE),
    bad("endless device", _link("/dev/zero"), VideoFault.UNREACHABLE),
)

FORBIDDEN = (
    bad("forbidden", _forbidden, VideoFault.NO_PERMISSION),
    bad("in a forbidden folder", _in_a_forbidden_folder, VideoFault.NO_PERMISSION),
)

BROKEN_FILES = (*CUT, *DAMAGED, *NO_VIDEOS, *PATHS)
