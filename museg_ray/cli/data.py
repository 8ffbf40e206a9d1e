"""`museg data`: annotation files of many formats into one folder of sound queries, and a look at what is in it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from museg_ray.cli import data_tables as tables
from museg_ray.data.importers import IMPORTERS
from museg_ray.data.importers.generic import Unit
from museg_ray.data.importing import import_annotations
from museg_ray.data.rules import MIN_SHARE, RULES, read_policies
from museg_ray.data.schema import QUARANTINE_SCHEMA, QUERY_SCHEMA
from museg_ray.data.store import QUARANTINE, QUERIES, read_report, read_table
from museg_ray.data.videos import FileLength
from museg_ray.errors import DataError, VideoError
from museg_ray.terminal.console import SafeConsole

PIPE_WIDTH = 160

data = typer.Typer(help="Training and evaluation data: import annotations, look at them.", no_args_is_help=True)


@data.command("import")
def import_command(
    source: Annotated[str, typer.Argument(help=f"Format of the files: {', '.join(IMPORTERS)}.")],
    files: Annotated[list[Path], typer.Argument(help="Annotation files; query ids start with their names.")],
    out: Annotated[Path, typer.Option(help="Folder for queries.parquet, quarantine.parquet and report.json.")],
    videos: Annotated[bool, typer.Option("--videos/--no-videos", help="Look for every video file.")] = True,
    video_root: Annotated[
        str | None,
        typer.Option(
            help="Folder or URL that relative video paths start from, also in training; else each annotation file's."
        ),
    ] = None,
    durations: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV with columns id and length (s), such as Charades_v1_train.csv, for rows without one; may be "
            "given several times."
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="NAME=POLICY: what to do with rows that break a rule: repair, quarantine or error."),
    ] = None,
    split: Annotated[str, typer.Option(help="Written to every query.")] = "train",
    min_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of a segment that must be left where its video ends before it does.")
    ] = MIN_SHARE,
    unit: Annotated[Unit | None, typer.Option(help="Of the times of a generic file whose rows do not tell it.")] = None,
) -> None:
    """Read annotation files, repair what can be repaired, quarantine what cannot, and say what was done."""
    console = SafeConsole(PIPE_WIDTH)
    report = import_annotations(
        source,
        files,
        out,
        read_policies(rule or []),
        check_videos=videos,
        video_root=video_root,
        durations=durations or (),
        split=split,
        min_share=min_share,
        unit=unit,
        measure=_measure,
        watch=partial(track, description="reading rows", console=console, transient=True),
    )
    _print_summary(console, out)
    _print_outcome(console, out, report)
    if not videos:
        console.print("Video files were not looked for (--no-videos).")


@data.command("inspect")
def inspect_command(
    folder: Annotated[Path, typer.Argument(help="Folder that an import wrote.")],
    rule: Annotated[str | None, typer.Option(help="Only rows that this rule repaired or that break it.")] = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Only quarantined rows.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows shown of each kind.")] = 20,
) -> None:
    """Show what an import kept, the repairs row by row, and the quarantined rows with their reasons."""
    if rule is not None and rule not in RULES:
        raise DataError(f"--rule {rule!r}: there is no such rule. The rules are {', '.join(RULES)}.")
    console = SafeConsole(PIPE_WIDTH)
    if not quarantined:
        if rule is None:
            _print_summary(console, folder)
        repairs = [
            {"query_id": row["query_id"], **repair}
            for row in read_table(folder / QUERIES, ["query_id", "repairs"]).to_pylist()
            for repair in row["repairs"]
            if rule in (None, repair["rule"])
        ]
        _print_listed(console, "repairs", repairs, limit, tables.repairs_table)
    rows = read_table(folder / QUARANTINE, QUARANTINE_SCHEMA.names).to_pylist()
    rows = [row for row in rows if rule is None or rule in row["rules"]]
    _print_listed(console, "quarantined rows", rows, limit, tables.quarantine_table)


def _measure(path: str) -> FileLength | None:
    from museg_ray.video.probe import promised_length

    try:
        return FileLength(*promised_length(path))
    except VideoError:  # for `museg data prepare` to tell
        return None


def _print_summary(console: SafeConsole, folder: Path) -> None:
    queries = read_table(folder / QUERIES, QUERY_SCHEMA.names).drop_columns(["question", "repairs"]).to_pylist()
    for table in (tables.kinds_table, tables.segments_table, tables.lengths_table):
        if queries:
            console.print(table(queries), "")
    console.print(tables.problems_table(read_report(folder)), "")


def _print_outcome(console: SafeConsole, out: Path, report: dict[str, Any]) -> None:
    root, durations = report["video_root"], report["durations"]
    lines = [
        f"{report['rows_in']} rows in = {report['rows_kept']} kept in {out / QUERIES} + "
        f"{report['rows_quarantined']} in {out / QUARANTINE}",
        f"Relative video paths start from {root}"
        if root
        else "Video paths were made absolute: each started from the folder of its annotation file.",
    ]
    if durations:
        lines.append(f"Rows that got their length from {' and '.join(durations['files'])}: {durations['rows_filled']}")
    if report["unread"]:
        lines.append(f"Columns that were not read: {', '.join(report['unread'])}")
    for line in lines:
        console.print_line(line)


def _print_listed(
    console: SafeConsole,
    what: str,
    rows: list[dict[str, Any]],
    limit: int,
    table: Callable[[list[dict[str, Any]]], Table],
) -> None:
    more = f", the first {limit} shown; --limit N shows more" if len(rows) > limit else ""
    console.print(Text.assemble((f"{what}: {len(rows)}", "bold"), more))
    if rows:
        console.print(table(rows[:limit]))
    console.print()
