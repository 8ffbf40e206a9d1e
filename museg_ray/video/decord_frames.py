"""Frames through decord 0.6 (`video.decoder`), of the kinds of files that it reads rightly.

A file is read in order and never sought or skipped in, where decord gives wrong frames. It turns them upright itself,
and conceals damage: PyAV has decoded the file before, for the same faults.
"""

import os
from collections.abc import Iterator, Sequence

import av
import decord
import numpy as np

from museg_ray.errors import VideoError, VideoFault
from museg_ray.video.container import open_container, video_stream
from museg_ray.video.probe import VideoProbe

UNREAD_FORMATS = ("mpegts", "mpeg", "gif", "h264", "hevc", "obu", "ivf", "mpegvideo", "m4v")
UNREAD_CODECS = ("av1", "libdav1d")
NARROWEST = 16
"""Pixels: rows of narrower frames come out wrong."""


def decord_frames(path: str, probed: VideoProbe, numbers: Sequence[int]) -> Iterator[av.VideoFrame]:
    """The frames of these numbers, ascending, upright.

    Raises:
        VideoError: decord reads such files wrongly or not at all.
    """
    _check_kind(path, probed)
    try:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != len(probed.starts_s):
            raise _refused(f"this file wrongly: it finds {len(reader)} frames in it and not {len(probed.starts_s)}")
        wanted = set(numbers)
        for number in range(numbers[-1] + 1):
            frame = reader.next()
            if number in wanted:
                yield av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.asnumpy()), format="rgb24")
    except (decord.DECORDError, StopIteration) as error:
        raise VideoError(f"decord: {str(error).splitlines()[0]}", VideoFault.CORRUPT) from None


def _check_kind(path: str, probed: VideoProbe) -> None:
    with open_container(path) as container:
        format_name, codec = container.format.name, video_stream(container).codec_context.codec.name
    display = probed.display
    unread = {
        f"{format_name} files": format_name in UNREAD_FORMATS,
        f"the codec {codec}": codec in UNREAD_CODECS,
        f"frames less than {NARROWEST} pixels wide": display.width < NARROWEST,
        "mirrored or transparent frames": display.has_alpha or not display.is_plain,
        "joined parts, tracks after the first, pixels that are no squares, or B-frames in AVI": not probed.is_plain,
        "names that are not UTF-8": os.fsencode(path) != path.encode(errors="replace"),
    }
    for what in (what for what, is_so in unread.items() if is_so):
        raise _refused(f"{what} wrongly or not at all")


def _refused(what: str) -> VideoError:
    return VideoError(f"decord reads {what}", VideoFault.DECODER)
