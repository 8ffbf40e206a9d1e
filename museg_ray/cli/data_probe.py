"""`museg data probe`: what a video is to us."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from museg_ray.config.load import load_config
from museg_ray.config.schema import Config
from museg_ray.errors import DataError
from museg_ray.terminal.console import SafeConsole, make_table, print_json

LABELS = {
    "num_frames": "frames",
    "fps": "frames a second",
    "promised_s": "promised, s",
    "duration_s": "held, s",
    "late_s": "later than the sound, s",
}
NUM_TIMES = 8
"""Selected times that the table shows; --json has all."""


def probe(
    files: Annotated[list[str], typer.Argument(help="Video files or URLs.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Whose video settings select the frames.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file and nothing else.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the selected frames with their times; for one file.")] = None,
) -> None:
    """Show everything that is believed about video files: what they hold, what is selected of it, and what is odd.

    Ends with 1 if one of them cannot be used.
    """
    if plot is not None and len(files) > 1:
        raise DataError(f"--plot draws one file, and {len(files)} were given. Give one.")

    from museg_ray.report.timelines import draw_selection
    from museg_ray.video.facts import video_facts

    video, console = (load_config(config) if config else Config()).video, SafeConsole()
    has_fault = False
    for file in files:
        facts, clip = video_facts(file, video)
        has_fault |= clip is None
        if as_json:
            print_json(facts)
        else:
            console.print(_table(facts), "")
        if plot is not None and clip is not None:
            draw_selection(plot, replace(clip, video=file))
    if has_fault:
        raise typer.Exit(1)


def _table(facts: dict[str, Any]) -> Table:
    table = make_table(show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        for row in _rows(name, value):
            table.add_row(*row)
    return table


def _rows(name: str, value: Any) -> list[tuple[str, Text]]:
    if name == "notices":
        return [("notice", Text(notice, "yellow")) for notice in value]
    if name == "times_s":
        shown = ", ".join(f"{time_s:g}" for time_s in value[:NUM_TIMES])
        return [("selected times, s", Text(shown + (", …" if len(value) > NUM_TIMES else "")))]
    if name in ("stored", "displayed"):
        return [(name, Text(f"{value[1]} x {value[0]}"))]
    if name == "selected":
        return [(name, Text(f"{value[0]} frames of {value[2]} x {value[1]}"))]
    return [(LABELS.get(name, name.replace("_", " ")), Text(str(value), "red" if name in ("fault", "reason") else ""))]
