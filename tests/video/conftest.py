"""Small mp4 files whose every frame shows its own number."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest

from museg_ray.types import ByteArray

NUM_BITS = 10


Render = Callable[..., Path]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Renders a file of the given name in the test's folder, see `render_video`."""

    def render_here(name: str = "video.mp4", **settings: Any) -> Path:
        return render_video(tmp_path / name, **settings)

    return render_here


def render_video(
    path: Path,
    fps: int | Fraction = 24,
    seconds: float = 12,
    times_s: Sequence[float] | None = None,
    width: int = 280,
    height: int = 56,
    **options: str,
) -> Path:
    """One numbered frame at each of `times_s` (kept to the ms) or `fps` a second; `options` go to the container."""
    time_base = Fraction(1, 1000) if times_s is not None else 1 / Fraction(fps)
    if times_s is None:
        times_s = [number / fps for number in range(round(fps * seconds))]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        stream.codec_context.time_base = time_base
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, width, height), format="rgb24")
            frame.pts, frame.time_base = round(time_s / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbered_frame(number: int, width: int, height: int) -> ByteArray:
    """Ten vertical bars, light for the one bits of the number."""
    bits = np.array([number >> place & 1 for place in range(NUM_BITS)])
    columns = 40 + 160 * bits[np.arange(width) * NUM_BITS // width]
    return np.broadcast_to(columns.astype(np.uint8)[None, :, None], (height, width, 3)).copy()


@pytest.fixture
def read_number() -> Callable[[ByteArray], int]:
    """Reads the number that a frame shows, after decoding and resizing."""

    def read(frame: ByteArray) -> int:
        centres = (np.arange(NUM_BITS) + 0.5) * frame.shape[1] / NUM_BITS
        bits = frame.mean(axis=(0, 2))[centres.astype(int)] > 120
        return sum(1 << place for place in range(NUM_BITS) if bits[place])

    return read


@pytest.fixture(scope="session")
def qwen() -> ModuleType:
    """The video part of qwen-vl-utils, the yardstick for counts and sizes."""
    try:
        from qwen_vl_utils import vision_process
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"qwen-vl-utils cannot be imported: {error}")
    return vision_process
