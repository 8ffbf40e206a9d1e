"""A time line for the terminal: segments as bars over one axis, a row for each set of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from museg_ray.types import Segment

NUM_TICKS = 6
NICE_STEPS = (1.0, 2.0, 5.0, 10.0)


class Track(NamedTuple):
    """One row of segments, of any time line."""

    label: str
    segments: Sequence[Segment]
    color: str
    """Of its bars, in the words of what draws them."""
    note: str = ""
    """Written at the right end of a picture."""


def text_timeline(tracks: Sequence[Track], width: int) -> Text:
    """Tracks over 0 to the last end of all, one line each, and an axis in seconds below. Needs at least one segment.

    A segment shorter than a character is drawn as one, so that nothing that is there goes unseen.

    Args:
        tracks: from top to bottom.
        width: characters of the axis, labels not counted.
    """
    last_end_s = max(end_s for track in tracks for _, end_s in track.segments)
    label_width = max(len(track.label) for track in tracks)
    lines = []
    for track in tracks:
        bars = _bars(track.segments, last_end_s, width)
        lines.append(
            Text.assemble(
                (track.label.ljust(label_width), "dim"), "  ", *((c, track.color if c == "█" else "dim") for c in bars)
            )
        )
    lines.append(Text(" " * (label_width + 2) + _axis(last_end_s, width), "dim"))
    return Text("\n").join(lines)


def _bars(segments: Sequence[Segment], last_end_s: float, width: int) -> str:
    cells = ["·"] * width
    for start_s, end_s in segments:
        first = min(math.floor(start_s / last_end_s * width), width - 1)
        last = max(first + 1, round(end_s / last_end_s * width))
        cells[first:last] = ["█"] * (last - first)
    return "".join(cells)


def _axis(last_end_s: float, width: int) -> str:
    """Round seconds under their places, as many as stand apart."""
    rough = last_end_s / NUM_TICKS
    magnitude = 10.0 ** math.floor(math.log10(rough)) if rough else 1.0  # the shortest floats have no sixth
    step_s = next((nice * magnitude for nice in NICE_STEPS if nice * magnitude >= rough * 0.999), rough)
    line = ""
    for index in range(math.floor(last_end_s / step_s) + 1):
        place = round(index * step_s / last_end_s * width)
        label = f"{index * step_s:g}" + (" s" if index == 0 else "")
        if place >= len(line) + bool(line) and place < width:
            line = line.ljust(place) + label
    return line
