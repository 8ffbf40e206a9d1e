"""The look of every picture: one palette, one set of matplotlib settings, one way to save.

Colours are Okabe and Ito's, told apart by colour-blind readers; figures are made without pyplot, so that drawing has
no global state and needs no screen.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from museg_ray.files import whole_file

INK = "#1f2328"
MUTED = "#6e7781"
FAINT = "#d8dee4"
BLUE = "#0072b2"
ORANGE = "#d98200"  # this and the next two darkened until labels in them can be read on white
GREEN = "#009e73"
PURPLE = "#a8578a"
SKY = "#3d9fd6"

TRUTH_COLOR, BEFORE_COLOR, AFTER_COLOR = INK, ORANGE, BLUE

_STYLE = Path(__file__).with_name("museg.mplstyle")


def save_png(path: Path, draw: Callable[..., Figure], *about: Any) -> Path:
    """Write the picture that `draw` makes of what it is `about`, in the house's look, whole or not at all."""
    with matplotlib.rc_context(fname=_STYLE), whole_file(path) as partial:
        draw(*about).savefig(partial, format="png")
    return path


def add_axes_inches(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches, `top` counted downwards from the figure's upper edge."""
    figure_width, figure_height = figure.get_size_inches()
    bottom = figure_height - top - height
    return figure.add_axes((left / figure_width, bottom / figure_height, width / figure_width, height / figure_height))


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves labels apart until neighbours are at least `gap` from each other, in the order given.

    Each round pushes every pair that is too close apart by half of what it lacks.
    """
    order = np.argsort(places, kind="stable")
    moved = np.asarray(places, dtype=float)[order]
    for _ in range(100):
        lack = np.maximum(gap - np.diff(moved), 0.0)
        if lack.max(initial=0.0) < gap * 1e-3:
            break
        moved[:-1] -= lack / 2
        moved[1:] += lack / 2
    result = np.empty_like(moved)
    result[order] = moved
    return [float(place) for place in result]
