"""A decoded frame as a player shows it: right way up, opaque, in its displayed shape."""

import av
import numpy as np
import numpy.typing as npt

from museg_ray.types import ByteArray


def displayed(frame: av.VideoFrame) -> ByteArray:
    """[H, W, 3], turned and mirrored by the file's display matrix; what is transparent lies on black."""
    return _oriented(_opaque_rgb(frame), _display_matrix(frame))


def displayed_size(frame: av.VideoFrame, pixel_shape: float) -> tuple[float, float]:
    """(height, width) on a screen; the height of a frame before it is turned is kept, as ffmpeg's usual `scale` does.

    Args:
        pixel_shape: a pixel's width by its height.
    """
    height, width = float(frame.height), frame.width * pixel_shape
    return (width, height) if _swaps_sides(_display_matrix(frame)) else (height, width)


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


def orientation(frame: av.VideoFrame) -> str:
    """In words."""
    matrix = _display_matrix(frame)
    swaps = _swaps_sides(matrix)
    return ORIENTATIONS[swaps, *_signs(matrix[::-1] if swaps else matrix)]


def is_plain(frame: av.VideoFrame) -> bool:
    """All pixels opaque, and not mirrored."""
    (a, b), (c, d) = _display_matrix(frame).tolist()
    is_opaque = not has_alpha(frame) or bool((frame.to_ndarray(format="rgba")[..., 3] == 255).all())
    return a * d - b * c > 0 and is_opaque


def has_alpha(frame: av.VideoFrame) -> bool:
    """Whether its pixels may be transparent."""
    return any(component.is_alpha for component in frame.format.components)


def _opaque_rgb(frame: av.VideoFrame) -> ByteArray:
    if not has_alpha(frame):
        pixels: ByteArray = frame.to_ndarray(format="rgb24")
        return pixels
    with_alpha = frame.to_ndarray(format="rgba").astype(np.uint16)
    return ((with_alpha[..., :3] * with_alpha[..., 3:] + 127) // 255).astype(np.uint8)


def _display_matrix(frame: av.VideoFrame) -> npt.NDArray[np.int32]:
    """[[a, b], [c, d]]: a pixel at (x, y) is shown at (a x + c y, b x + d y); its signs are what counts."""
    for data in frame.side_data:
        if data.type == av.sidedata.sidedata.Type.DISPLAYMATRIX:
            return np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]
    return np.eye(2, dtype=np.int32)


def _swaps_sides(matrix: npt.NDArray[np.int32]) -> bool:
    return bool(abs(int(matrix[0, 1])) > abs(int(matrix[0, 0])))


def _oriented(pixels: ByteArray, matrix: npt.NDArray[np.int32]) -> ByteArray:
    """One of the eight orientations; of an angle between two the nearer."""
    if _swaps_sides(matrix):
        pixels, matrix = pixels.swapaxes(0, 1), matrix[::-1]
    rows, columns = _signs(matrix)
    return pixels[::rows, ::columns]


def _signs(matrix: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Of rows and columns: -1 where they are shown in reverse."""
    return (-1 if matrix[1, 1] < 0 else 1), (-1 if matrix[0, 0] < 0 else 1)
