"""`museg data prepare`: fills the frame store before a run."""

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from museg_ray.cli.files import write_text
from museg_ray.config.load import load_config
from museg_ray.errors import VideoError
from museg_ray.terminal.console import SafeConsole

NUM_LISTED = 20


@dataclass(slots=True)
class _Tally:
    num_decoded: int = 0
    num_found: int = 0
    size_bytes: int = 0
    unreadable: dict[str, VideoError] = field(default_factory=dict)


def prepare(
    config: Annotated[Path, typer.Option("--config", "-c", help="The run's YAML file: queries and video settings.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value pairs that win over the file.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Videos decoded at once.")] = os.cpu_count() or 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the unreadable videos here.")] = None,
) -> None:
    """Decode every video that a run needs into its frame store, and name those that cannot be read.

    What is there already is kept; stop it at any time and go on later. Several machines that share the store may run
    it at once, and a run may train meanwhile.
    """
    loaded = load_config(config, overrides or ())

    from museg_ray.train.queries import read_run_queries
    from museg_ray.video.fill import prepare_all

    console = SafeConsole()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tally = _Tally()
    with Progress(*columns, console=console, transient=True) as progress:
        render = progress.add_task("videos and questions", total=None)
        queries = read_run_queries(loaded, lambda done, total: progress.update(render, completed=done, total=total))
        progress.remove_task(render)
        videos = list(dict.fromkeys(query.video for query in queries))
        bar = progress.add_task("preparing clips", total=len(videos))
        for video, result in prepare_all(videos, loaded.video, workers, console.print_line):
            if isinstance(result, VideoError):
                tally.unreadable[video] = result
            else:
                tally.num_decoded += result.was_decoded
                tally.num_found += not result.was_decoded
                tally.size_bytes += result.size_bytes
            progress.advance(bar)
    _print(console, tally, loaded.video.store_dir)
    if json_file is not None:
        rows = [{"video": video, "fault": e.fault.value, "reason": str(e)} for video, e in tally.unreadable.items()]
        write_text(json_file, json.dumps(rows, indent=2) + "\n")
    if videos and len(tally.unreadable) == len(videos):
        raise VideoError(
            f"None of the {len(videos)} videos can be read. Where relative paths start from is data.video_root, or the "
            "--video-root of the import."
        )


def _print(console: SafeConsole, tally: _Tally, store_dir: str) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    table.add_column("clips")
    table.add_column("videos", justify="right")
    table.add_row("decoded now", f"{tally.num_decoded:,}")
    table.add_row("there before", f"{tally.num_found:,}")
    for fault, count in Counter(error.fault.value for error in tally.unreadable.values()).most_common():
        table.add_row(Text.assemble(("unreadable", "red"), f": {fault}"), f"{count:,}")
    console.print(table)
    console.print_line(f"{tally.size_bytes / 1024**3:.2f} GiB in {store_dir}")
    for error in list(tally.unreadable.values())[:NUM_LISTED]:
        console.print_line(f"  {error}")
    if len(tally.unreadable) > NUM_LISTED:
        console.print(f"  … and {len(tally.unreadable) - NUM_LISTED} more; --json FILE names them all")
