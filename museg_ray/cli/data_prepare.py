"""`museg data prepare`: fills the frame store before a run."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from museg_ray.cli.files import write_text
from museg_ray.config.load import load_config
from museg_ray.data.fit import fit_to_file
from museg_ray.errors import UnfitQueryError, VideoError
from museg_ray.terminal.console import SafeConsole, make_table
from museg_ray.types import GroundingQuery

if TYPE_CHECKING:
    from museg_ray.video.prepare import PreparedClip

NUM_LISTED = 20


@dataclass(slots=True)
class _Tally:
    num_decoded: int = 0
    num_found: int = 0
    size_bytes: int = 0
    unreadable: dict[str, VideoError] = field(default_factory=dict)
    unfit: dict[str, UnfitQueryError] = field(default_factory=dict)
    """By id of the query."""
    noted: Counter[str] = field(default_factory=Counter)
    """Rules of truths and lengths that differ from the file's, and are kept."""
    notices: list[str] = field(default_factory=list)

    def add(self, video: str, result: "PreparedClip | VideoError", queries: Sequence[GroundingQuery]) -> None:
        if isinstance(result, VideoError):
            self.unreadable[video] = result
            return
        self.num_decoded += result.was_decoded
        self.num_found += not result.was_decoded
        self.size_bytes += result.size_bytes
        self.notices += [f"{video}: {notice}" for notice in result.notices]
        for query in queries:
            try:
                self.noted.update(finding.rule for finding in fit_to_file(query, result.duration_s)[1])
            except UnfitQueryError as error:
                self.unfit[query.query_id] = error


def prepare(
    config: Annotated[Path, typer.Option("--config", "-c", help="The run's YAML file: queries and video settings.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value pairs that win over the file.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Videos decoded at once.")] = os.cpu_count() or 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write here what cannot be used.")] = None,
) -> None:
    """Decode every video that a run needs into its frame store, and name those that cannot be read, and the queries
    whose truth they do not have.

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
        videos: dict[str, list[GroundingQuery]] = {}
        for query in queries:
            videos.setdefault(query.video, []).append(query)
        bar = progress.add_task("preparing clips", total=len(videos))
        for video, result in prepare_all(list(videos), loaded.video, workers, console.print_line):
            tally.add(video, result, videos[video])
            progress.advance(bar)
    _print(console, tally, loaded.video.store_dir)
    if json_file is not None:
        rows = [{"video": video, "fault": e.fault, "reason": str(e)} for video, e in tally.unreadable.items()]
        rows += [{"notice": notice} for notice in tally.notices]
        rows += [{"query_id": query_id, "fault": e.fault, "reason": str(e)} for query_id, e in tally.unfit.items()]
        write_text(json_file, json.dumps(rows, indent=2) + "\n")
    if videos and len(tally.unreadable) == len(videos):
        raise VideoError(
            f"None of the {len(videos)} videos can be read. Where relative paths start from is data.video_root, or the "
            "--video-root of the import."
        )


def _print(console: SafeConsole, tally: _Tally, store_dir: str) -> None:
    table = make_table(["clips"], ["videos"])
    table.add_row("decoded now", f"{tally.num_decoded:,}")
    table.add_row("there before", f"{tally.num_found:,}")
    for fault, count in Counter(error.fault.value for error in tally.unreadable.values()).most_common():
        table.add_row(Text.assemble(("unreadable", "red"), f": {fault}"), f"{count:,}")
    for unfit, count in Counter(error.fault for error in tally.unfit.values()).most_common():
        table.add_row(Text.assemble(("set aside", "red"), f": {unfit}"), f"{count:,} queries")
    for rule, count in tally.noted.most_common():
        table.add_row(f"noted: {rule}", f"{count:,} queries")
    console.print(table)
    console.print_line(f"{tally.size_bytes / 1024**3:.2f} GiB in {store_dir}")
    for told in (tally.notices, [str(error) for error in (*tally.unreadable.values(), *tally.unfit.values())]):
        for line in told[:NUM_LISTED]:
            console.print_line(f"  {line}")
        if len(told) > NUM_LISTED:
            console.print(f"  … and {len(told) - NUM_LISTED} more; --json FILE names them all")
