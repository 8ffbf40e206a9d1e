"""curves.png: how reward, its parts, the log-prob gap and the time of a step went over training."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from museg_ray.metrics import names
from museg_ray.report.run_folder import RunFolder
from museg_ray.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SKY, save_png, spread

FEW_STEPS = 12
"""Up to so many steps are drawn as they are, with dots: a line through two points says little."""

LABEL_POINTS = 13.0
"""Least distance between the labels of two lines."""

Values = npt.NDArray[np.float64]

Line = tuple[str, str, str]
"""Label, metric, colour."""

REWARD_PARTS = (
    ("matching", names.REWARD_MATCHING, BLUE),
    ("global", names.REWARD_GLOBAL, SKY),
    ("local", names.REWARD_LOCAL, PURPLE),
    ("timestamp", names.REWARD_TIMESTAMP, ORANGE),
    ("format", names.REWARD_FORMAT, GREEN),
)
GAPS = (("max", names.PARITY_GAP_MAX, MUTED), ("mean", names.PARITY_GAP_MEAN, INK))
TIME_COLORS = {"clips": PURPLE, "rollout": SKY, "reward": ORANGE, "learner": BLUE, "sync": GREEN}


def draw_curves(run: RunFolder) -> Path:
    """Draw `curves.png` in the run folder; a run without a finished step gives a picture that says so."""
    return save_png(run.path / "curves.png", _curves if run.rows else _no_step_yet, run)


def _no_step_yet(_: RunFolder) -> Figure:
    figure = Figure(figsize=(10, 1.5))
    figure.text(0.5, 0.5, "No step has finished yet.", ha="center", va="center", color=MUTED)
    return figure


def _curves(run: RunFolder) -> Figure:
    figure = Figure(figsize=(10, 9.6))
    grid = figure.add_gridspec(
        3, 2, height_ratios=(1.7, 1, 1), left=0.055, right=0.875, top=0.885, bottom=0.055, hspace=0.42, wspace=0.55
    )
    parts = figure.add_subplot(grid[0, :])
    total, deviation, gap, seconds = (figure.add_subplot(grid[row, column]) for row in (1, 2) for column in (0, 1))
    parts.set_ylim(-0.01, 1.02)
    _draw_lines(parts, run, REWARD_PARTS)
    total.set_title("Total, as each phase weighs the parts")
    _draw_lines(total, run, [("total", names.REWARD_TOTAL, INK)])
    _draw_deviation(deviation, run)
    _draw_gap(gap, run)
    _draw_seconds(seconds, run)
    for axes in (parts, total, deviation, gap, seconds):
        _mark_phases(axes, run)
    _name_phases(parts, run)
    _mark_alarms(parts, run)
    figure.text(0.055, 0.972, f"Reward over {len(run.rows)} steps", fontsize=15, fontweight="bold", va="center")
    figure.text(0.055, 0.947, _how_drawn(run), color=MUTED, va="center")
    return figure


def _window(run: RunFolder) -> int:
    """Steps that a running mean covers: the root of their number keeps both the noise and the lag small."""
    return round(math.sqrt(len(run.rows))) if len(run.rows) > FEW_STEPS else 1


def _how_drawn(run: RunFolder) -> str:
    per_step = "the mean over the responses of a step"
    drawn = f"Light: {per_step}, strong: its running mean over {_window(run)} steps" if _window(run) > 1 else per_step
    return f"Parts of the reward, each between 0 and 1. {drawn[0].upper()}{drawn[1:]}."


def _draw_deviation(axes: Axes, run: RunFolder) -> None:
    axes.set_title("Spread of the total within a group")
    axes.set_ylim(0, 1.15 * run.series(names.REWARD_STD)[1].max(initial=0.01))
    _draw_lines(axes, run, [("std", names.REWARD_STD, INK)])


def _draw_gap(axes: Axes, run: RunFolder) -> None:
    """On a log axis of whole decades, not smoothed: one outlier is what the reader looks for."""
    axes.set_title("Rollout against learner log-probs, nats")
    lines = [(*run.series(metric), label, color) for label, metric, color in GAPS]
    positive = [value for _, values, _, _ in lines for value in values if value > 0]
    if positive:  # a log axis has no place for gaps that are all zero
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(10 ** math.floor(math.log10(min(positive))), 10 ** math.ceil(math.log10(max(positive)) + 0.01))
    axes.yaxis.set_major_formatter("{x:.0e}")
    ends = []
    for steps, values, label, color in lines:
        axes.plot(steps, values, color=color, linewidth=1, marker=_marker(run), markersize=3.5)
        if len(values) and values[-1] > 0:
            ends.append((f"{label} {values[-1]:.0e}", float(values[-1]), color))
    _label_ends(axes, ends)
    axes.set_xlabel("step")


def _draw_seconds(axes: Axes, run: RunFolder) -> None:
    """Smoothed seconds of each part, one on the other."""
    axes.set_title("Seconds a step")
    base, ends = np.zeros(len(run.rows)), []
    for label, color in TIME_COLORS.items():
        steps, values = run.series(names.TIME_PARTS[label])
        if len(values) != len(run.rows):
            continue
        top = base + _smooth(values, _window(run))
        axes.fill_between(steps, base, top, color=color, linewidth=0, alpha=0.85)
        ends.append((f"{label} {top[-1] - base[-1]:.2f}", float(base[-1] + top[-1]) / 2, color))
        base = top
    axes.set_ylim(0, 1.15 * base.max(initial=0.01))
    _label_ends(axes, ends)
    axes.set_xlabel("step")


def _draw_lines(axes: Axes, run: RunFolder, lines: Sequence[Line]) -> None:
    """One light raw and one strong smoothed line a metric, named at its right end.

    Smoothed within each phase: a mean over the switch would blur two different rewards into a slope.
    """
    window, ends = _window(run), []
    for label, metric, color in lines:
        steps, values = run.series(metric)
        if not len(values):
            continue
        for phase in run.phases:
            inside = (steps >= phase.first_step) & (steps <= phase.last_step)
            if not inside.any():
                continue
            smooth = _smooth(values[inside], window)
            axes.plot(steps[inside], smooth, color=color, linewidth=1.9, marker=_marker(run), markersize=3.5)
            if window > 1:
                axes.plot(steps[inside], values[inside], color=color, alpha=0.3, linewidth=0.9)
        ends.append((f"{label} {smooth[-1]:.2f}", float(smooth[-1]), color))
    _label_ends(axes, ends)


def _marker(run: RunFolder) -> str | None:
    return "o" if len(run.rows) <= FEW_STEPS else None


def _smooth(values: Values, window: int) -> Values:
    """Centred running mean [N] -> [N]; at the ends it takes what is there, so that it neither lags nor dips."""
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _label_ends(axes: Axes, ends: Sequence[tuple[str, float, str]]) -> None:
    """Writes (text, value, colour) right of the axes at the values, moved apart where they would overlap."""
    axes.get_ylim()  # settles the limits, which transData alone does not
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform((1, value))[1] for _, value, _ in ends]
    height_points = axes.get_window_extent().height * 72 / axes.figure.dpi
    for (text, _, color), height in zip(ends, spread(heights, LABEL_POINTS / height_points), strict=True):
        axes.text(1.02, height, text, transform=axes.transAxes, va="center", color=color, fontsize=9.5)


def _mark_phases(axes: Axes, run: RunFolder) -> None:
    first, last = run.rows[0]["step"], run.rows[-1]["step"]
    margin = max(0.5, (last - first) * 0.01)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    for phase in run.phases[1:]:
        axes.axvline(phase.first_step - 0.5, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))


def _name_phases(axes: Axes, run: RunFolder) -> None:
    """Names each phase above its own steps."""
    place = axes.get_xaxis_transform()
    for phase in run.phases:
        middle = (phase.first_step + phase.last_step) / 2
        axes.text(middle, 1.03, phase.name, transform=place, ha="center", color=MUTED, fontweight="bold")


def _mark_alarms(axes: Axes, run: RunFolder) -> None:
    """A triangle above the axis at each step that raised an alarm, explained beside it."""
    steps = [alarm.last_step for alarm in run.alarms]
    axes.plot(steps, [0.025] * len(steps), "^", color=INK, markersize=6, transform=axes.get_xaxis_transform())
    if steps:
        axes.text(1.02, -0.05, "▲ alarm raised", transform=axes.transAxes, va="center", color=INK, fontsize=9.5)
