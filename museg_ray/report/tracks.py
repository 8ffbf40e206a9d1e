"""Draws segments as tracks on one time axis: the lower half of every time line."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from museg_ray.report.style import FAINT, MUTED, add_axes_inches
from museg_ray.report.timeline_text import Track

TRACK_INCHES = 0.25
BAR_SHARE = 0.62
"""Of a track's height."""


def draw_tracks(
    figure: Figure, tracks: Sequence[Track], duration_s: float, left: float, top: float, width: float
) -> Axes:
    """Draw tracks one below the other over 0 .. `duration_s`; places and sizes in inches.

    A segment that goes on after the end of the video is cut there and marked with an arrow head.
    """
    axes = add_axes_inches(figure, left, top, width, len(tracks) * TRACK_INCHES)
    axes.set_xlim(0, duration_s)
    axes.set_ylim(len(tracks) - 0.5, -0.5)
    for row, track in enumerate(tracks):
        _draw_track(axes, row, track, duration_s)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.tick_params(axis="x", pad=1)
    return axes


def _draw_track(axes: Axes, row: int, track: Track, duration_s: float) -> None:
    axes.barh(row, duration_s, height=BAR_SHARE, color=FAINT, alpha=0.55)
    for start_s, end_s in track.segments:
        shown_s = max(min(end_s, duration_s) - start_s, 0.0)
        axes.barh(row, shown_s, left=start_s, height=BAR_SHARE, color=track.color)
        if end_s > duration_s:
            axes.plot(duration_s, row, ">", color=track.color, markersize=7, clip_on=False)
    if not track.segments:
        axes.text(duration_s / 2, row, "no valid answer", ha="center", va="center", color=MUTED, style="italic")
    beside = axes.get_yaxis_transform()
    axes.text(-0.01, row, track.label, transform=beside, ha="right", va="center", color=track.color)
    axes.text(1.018, row, track.note, transform=beside, va="center", color=track.color, fontweight="bold")
