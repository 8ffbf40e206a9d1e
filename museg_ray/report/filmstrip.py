"""Draws a clip as a strip of frames that stands on the time axis below it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from museg_ray.report.style import AFTER_COLOR, add_axes_inches
from museg_ray.types import Clip, Segment

GAP_INCHES = 0.05
FRAME_POINTS = 2.5
"""Width of the coloured frame around a tile."""


def tile_width(clip: Clip, height: float) -> float:
    """Width of a frame that is `height` high, in the same unit."""
    num_rows, num_columns = clip.frames.shape[1:3]
    return float(height * num_columns / num_rows)


def num_tiles(clip: Clip, width: float, height: float) -> int:
    """Frames in their own shape that fit beside each other into `width` x `height` inches."""
    return max(1, int((width + GAP_INCHES) / (tile_width(clip, height) + GAP_INCHES)))


def tile_times(duration_s: float, count: int, segments: Sequence[Segment] = ()) -> list[float]:
    """Time of each tile, in seconds and in order: the middles of `count` equal stretches.

    Where no tile falls into a segment, the nearest free one moves to the segment's middle: every segment is seen.
    """
    times = [duration_s * (index + 0.5) / count for index in range(count)]
    for start_s, end_s in segments:
        middle_s = (start_s + end_s) / 2
        free = [time_s for time_s in times if not is_inside(time_s, segments)]
        if free and not any(start_s <= time_s <= end_s for time_s in times):
            times.remove(min(free, key=lambda time_s: abs(time_s - middle_s)))
            times.append(middle_s)
    return sorted(times)


def is_inside(time_s: float, segments: Sequence[Segment]) -> bool:
    return any(start_s <= time_s <= end_s for start_s, end_s in segments)


def draw_strip(
    figure: Figure,
    clip: Clip,
    times_s: Sequence[float],
    box: tuple[float, float, float, float],
    highlighted: Sequence[Segment] = (),
) -> Axes:
    """Draw the frames at `times_s` from left to right in equal places.

    Args:
        figure: to draw on.
        clip: where the frames come from.
        times_s: one a tile, as `tile_times` gives them.
        box: left, top, width, height in inches.
        highlighted: tiles inside these segments get a coloured frame.

    Returns:
        the axes of the strip: inches from its lower left corner, tile i in the middle of the i-th equal stretch.
    """
    left, top, width, height = box
    axes = add_axes_inches(figure, left, top, width, height)
    tile = tile_width(clip, height)
    for index, time_s in enumerate(times_s):
        start = (index + 0.5) * width / len(times_s) - tile / 2
        frame = clip.frames[int(np.abs(clip.times_s - time_s).argmin())]
        axes.imshow(frame, extent=(start, start + tile, 0, height), interpolation="lanczos")
        if is_inside(time_s, highlighted):
            edge = Rectangle((start, 0), tile, height, fill=False, edgecolor=AFTER_COLOR, linewidth=FRAME_POINTS)
            edge.set_clip_on(False)
            axes.add_patch(edge)
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return axes
