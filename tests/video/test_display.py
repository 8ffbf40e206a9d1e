"""A frame as a player shows it."""

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from museg_ray.config.schema import VideoConfig
from museg_ray.types import ByteArray
from museg_ray.video.display import Display, Matrix
from museg_ray.video.prepare import read_clip
from tests.video.conftest import numbered_frame
from tests.video.odd_files import CLOCK, FPS, frame_of

AUTOROTATE = {
    (1, 0, 0, 1): (),
    (-1, 0, 0, 1): ("hflip",),
    (1, 0, 0, -1): ("vflip",),
    (-1, 0, 0, -1): ("hflip", "vflip"),
    (0, 1, -1, 0): ("transpose=clock",),
    (0, -1, 1, 0): ("transpose=cclock",),
    (0, 1, 1, 0): ("transpose=cclock_flip",),
    (0, -1, -1, 0): ("transpose=clock_flip",),
}
"""A display matrix's (a, b, c, d), and the filters that ffmpeg puts before an encoder for it (its `-autorotate`)."""


def filtered(pixels: ByteArray, filters: tuple[str, ...]) -> ByteArray:
    graph, frame = av.filter.Graph(), frame_of(pixels, 0, CLOCK)
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=CLOCK)]
    nodes += [graph.add(*name.partition("=")[::2]) for name in filters] + [graph.add("buffersink")]
    for one, next_one in pairwise(nodes):
        one.link_to(next_one)
    graph.configure()
    graph.push(frame)
    shown: ByteArray = graph.pull().to_ndarray(format="rgb24")
    return shown


@pytest.mark.parametrize("matrix", AUTOROTATE)
def test_all_eight_orientations_are_those_of_ffmpeg(matrix: Matrix) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    display, frame, expected = Display(matrix), frame_of(pixels, 0, CLOCK), filtered(pixels, AUTOROTATE[matrix])
    np.testing.assert_array_equal(display.pixels(frame), expected)
    assert display.size(frame) == expected.shape[:2]


def test_what_is_transparent_lies_on_black(tmp_path: Path) -> None:
    path = tmp_path / "video.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=FPS, options={"deadline": "realtime", "auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 140, 112, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for number in range(10):
            pixels = np.full((112, 140, 4), (255, 0, 255, 0), np.uint8)  # magenta, which nobody is to see
            pixels[:56, :, :3], pixels[:56, :, 3] = numbered_frame(number, 140, 56), 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
            frame.pts, frame.time_base = number, CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_clip(str(path), VideoConfig(store_dir=str(tmp_path), fps=10)).frames
    assert frames[:, frames.shape[1] // 2 + 8 :].max() < 20, "black below"
    assert frames[5:, : frames.shape[1] // 2 - 8].max() > 150, "and bars above"


def test_half_transparent_is_half_as_bright() -> None:
    frame = av.VideoFrame.from_ndarray(np.full((16, 16, 4), (200, 100, 50, 128), np.uint8), format="rgba")
    np.testing.assert_array_equal(np.unique(Display().pixels(frame)), [25, 50, 100])
