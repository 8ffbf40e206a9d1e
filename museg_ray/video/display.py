"""A decoded frame as a player shows it: right way up, opaque, in its displayed shape."""

from dataclasses import dataclass

import av
import numpy as np

from museg_ray.types import ByteArray

Matrix = tuple[int, int, int, int]
"""(a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y); their signs are what counts."""
UPRIGHT: Matrix = (1, 0, 0, 1)
ORIENTATIONS = {
    (False, 1, 1): "upright",
    (False, 1, -1): "mirrored",
    (False, -1, 1): "upside down and mirrored",
    (False, -1, -1): "turned by 180°",
    (True, 1, -1): "turned by 90° to the right",
    (True, -1, 1): "turned by 90° to the left",
    (True, 1, 1): "turned by 90° to the left and mirrored",
    (True, -1, -1): "turned by 90° to the right and mirrored",
}
"""By whether rows and columns are swapped, and the signs of both after that: what a stored frame is shown as."""


@dataclass(frozen=True, slots=True)
class Display:
    """How the frames of a stream are shown, as its first frame tells."""

    matrix: Matrix = UPRIGHT
    rotation: int = 0
    """By the matrix, in degrees, as FFmpeg tells it for each frame."""
    pixel_shape: float = 1.0
    """A pixel's width by its height."""
    width: int = 0
    """Of the stored frame."""
    has_alpha: bool = False
    """Whether pixels may be transparent."""
    is_plain: bool = True
    """Opaque, and not mirrored."""

    @classmethod
    def of(cls, frame: av.VideoFrame, pixel_shape: float) -> "Display":
        a, b, c, d = matrix = _matrix(frame)
        has_alpha = _has_alpha(frame)
        is_opaque = not has_alpha or bool((frame.to_ndarray(format="rgba")[..., 3] == 255).all())
        return cls(matrix, frame.rotation, pixel_shape, frame.width, has_alpha, is_opaque and a * d - b * c > 0)

    @property
    def orientation(self) -> str:
        """In words."""
        return ORIENTATIONS[_turns(self.matrix)]

    def pixels(self, frame: av.VideoFrame) -> ByteArray:
        """[H, W, 3], turned and mirrored by the file's display matrix; what is transparent lies on black."""
        swaps, rows, columns = _turns(self._matrix_of(frame))
        pixels = _opaque_rgb(frame)
        return (pixels.swapaxes(0, 1) if swaps else pixels)[::rows, ::columns]

    def size(self, frame: av.VideoFrame) -> tuple[float, float]:
        """(height, width) on a screen; the height of a frame before it is turned is kept, as ffmpeg's usual `scale`
        does."""
        height, width = float(frame.height), frame.width * self.pixel_shape
        swaps, _, _ = _turns(self._matrix_of(frame))
        return (width, height) if swaps else (height, width)

    def _matrix_of(self, frame: av.VideoFrame) -> Matrix:
        return self.matrix if frame.rotation == self.rotation else _matrix(frame)


def _matrix(frame: av.VideoFrame) -> Matrix:
    """Afterwards only Python's collector of cycles frees the frame: PyAV's side data and the frame hold each other."""
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
            return a, b, c, d
    return UPRIGHT


def _turns(matrix: Matrix) -> tuple[bool, int, int]:
    """Whether rows and columns are swapped, and the steps that both are then taken in, -1 in reverse; of an angle
    between two orientations those of the nearer."""
    a, b, c, d = matrix
    swaps = abs(b) > abs(a)
    rows, columns = (b, c) if swaps else (d, a)
    return swaps, (-1 if rows < 0 else 1), (-1 if columns < 0 else 1)


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _opaque_rgb(frame: av.VideoFrame) -> ByteArray:
    if not _has_alpha(frame):
        pixels: ByteArray = frame.to_ndarray(format="rgb24")
        return pixels
    with_alpha = frame.to_ndarray(format="rgba").astype(np.uint16)
    return ((with_alpha[..., :3] * with_alpha[..., 3:] + 127) // 255).astype(np.uint8)
