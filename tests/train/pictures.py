"""All that a run leaves, but for what depends on the clock: two runs that did the same have equal pictures."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from museg_ray.checkpoints.folder import list_checkpoints
from museg_ray.metrics import names
from tests.whole_ledger import read_ledger

FREE_METRICS = (
    "time_s",
    *(name for name in names.METRICS if name.startswith(("time/", "queue/"))),
    names.ROLLOUT_RESPONSES_PER_S,
    names.VIDEO_PREPARED,
)
"""Times, rates, queue peaks and counts of cached clips."""
FREE_OF_SUMMARY = ("wall_s", "rollouts_per_s", "resumed_at_steps")


def books(folder: Path) -> dict[str, Any]:
    """By name, each in a form that compares and prints well."""
    rollouts = pq.read_table(folder / "rollouts.parquet").to_pylist()
    ledger = [asdict(row) for row in read_ledger(folder / "ledger.jsonl")]
    checkpoints = list_checkpoints(folder / "checkpoints")
    return {
        "metrics": [_without(row, *FREE_METRICS) for row in _lines(folder / "metrics.jsonl")],
        "curves": _curves(folder),
        "alarms": _lines(folder / "alarms.jsonl"),
        "quarantine": sorted(map(json.dumps, _lines(folder / "quarantine.jsonl"))),
        "ledger": [_without(row, "issued_unix_s", "ended_unix_s") for row in ledger],
        "rollouts": sorted(rollouts, key=lambda row: row["step"]),
        "answers": {path.name: _lines(path) for path in folder.glob("evaluation/*.jsonl")},
        "summary": _without(json.loads((folder / "summary.json").read_text()), *FREE_OF_SUMMARY),
        "checkpoints": [(each.step, each.read_state().score) for each in checkpoints],
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    kept = [name for name in events.Tags()["scalars"] if name not in FREE_METRICS]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in kept}
