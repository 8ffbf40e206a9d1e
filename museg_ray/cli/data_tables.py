"""The tables of `museg data`."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from museg_ray.shown_text import one_line
from museg_ray.terminal.console import make_table

Row = dict[str, Any]
"""A row of queries.parquet or quarantine.parquet."""

SEGMENT_BINS = (1, 2, 3, 4, 5, 10, 20)
"""Largest number of segments in each column; a last column has the rest."""


def kinds_table(queries: Sequence[Row]) -> Table:
    """Queries by source and task."""
    table = make_table(["source", "task"], ["queries", "one segment", "several", "videos"], title="queries kept")
    for kind in sorted({_kind(row) for row in queries}):
        table.add_row(*kind, *_kind_counts([row for row in queries if _kind(row) == kind]))
    table.add_section()
    table.add_row("all", "", *_kind_counts(queries))
    return table


def _kind(row: Row) -> tuple[str, str]:
    return one_line(row["source"]) or "-", one_line(row["task"])


def _kind_counts(rows: Sequence[Row]) -> tuple[str, ...]:
    one = sum(len(row["segments"]) == 1 for row in rows)
    counts = (len(rows), one, len(rows) - one, len({row["video"] for row in rows}))
    return tuple(f"{count:,}" for count in counts)


def segments_table(queries: Sequence[Row]) -> Table:
    """Queries by their number of segments."""
    bins = np.searchsorted(SEGMENT_BINS, [len(row["segments"]) for row in queries])
    counts = Counter(int(place) for place in bins)
    pairs = zip((0, *SEGMENT_BINS), SEGMENT_BINS, strict=False)
    headings = [f"{high}" if high == low + 1 else f"{low + 1} to {high}" for low, high in pairs]
    table = make_table(["segments"], [*headings, f"over {SEGMENT_BINS[-1]}"])
    table.add_row("queries", *(f"{counts[place]:,}" for place in range(len(SEGMENT_BINS) + 1)))
    return table


def lengths_table(queries: Sequence[Row]) -> Table:
    """How long videos and segments are."""
    table = make_table(["seconds"], ["known", "unknown", "least", "median", "most"])
    videos = {row["video"]: row["duration_s"] for row in queries}
    known = [length_s for length_s in videos.values() if length_s is not None]
    segments = [part["end_s"] - part["start_s"] for row in queries for part in row["segments"]]
    table.add_row("videos", *_spread(known, len(videos) - len(known)))
    table.add_row("segments", *_spread(segments, 0))
    return table


def _spread(lengths_s: Sequence[float], num_unknown: int) -> tuple[str, ...]:
    spread = [f"{value:.2f}" for value in np.percentile(lengths_s, (0, 50, 100))] if lengths_s else ["-"] * 3
    return f"{len(lengths_s):,}", f"{num_unknown:,}", *spread


def problems_table(report: Row) -> Table:
    """Rows that break a rule, and what was done; rules that every row keeps are left out."""
    numbers = ["rows", "repaired", "quarantined", "noted", "largest, s"]
    table = make_table(["rule", "policy"], numbers, title="rows that break a rule")
    for name, counts in report["rules"].items():
        if counts["rows"]:
            shown = (f"{counts[key]:,}" for key in numbers[:-1])
            table.add_row(name, counts["policy"], *shown, _amount(counts["largest_s"]))
    if not table.rows:
        table.add_row("none", "", *[""] * 5)
    return table


def repairs_table(repairs: Iterable[Row]) -> Table:
    """One line a repair; of its segments those that it changed."""
    table = make_table(["query", "rule"])
    for heading in ("before, s", "after, s"):
        table.add_column(heading, overflow="fold")
    table.add_column("amount, s", justify="right", no_wrap=True)
    for repair in repairs:
        before, after = _changed(json.loads(repair["before"]), json.loads(repair["after"]))
        table.add_row(one_line(repair["query_id"]), repair["rule"], before, after, _amount(repair["amount_s"]))
    return table


def _changed(before: list[list[float]], after: list[list[float]]) -> tuple[str, str]:
    """Both without the segments that they share, unless only the order differs."""
    if sorted(before) == sorted(after):
        return _shown(before), _shown(after)
    return _shown(pair for pair in before if pair not in after), _shown(pair for pair in after if pair not in before)


def _shown(segments: Iterable[list[float]]) -> str:
    return ", ".join(f"{start_s:.2f} to {end_s:.2f}" for start_s, end_s in segments)


def quarantine_table(rows: Iterable[Row]) -> Table:
    """One line a quarantined row."""
    table = make_table(["row"])
    table.add_column("reason", overflow="fold")
    table.add_column("as annotated", overflow="fold", style="dim")
    for row in rows:
        place = f"{Path(row['file']).name}:{row['row']}"
        table.add_row(*map(one_line, (place, row["reason"], _shortened(row["raw"]))))
    return table


def _shortened(raw: str, limit: int = 60) -> str:
    return raw if len(raw) <= limit else raw[:limit] + "…"


def _amount(amount_s: float | None) -> str:
    return "" if amount_s is None else f"{amount_s:.3f}"
