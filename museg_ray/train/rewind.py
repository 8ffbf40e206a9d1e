"""Takes a run folder back to the step of a checkpoint, as if the run had never gone beyond it.

    metrics.jsonl, alarms.jsonl, quarantine.jsonl    later lines are dropped, and a last one that a crash tore
    rollouts.parquet/                                parts with later steps are deleted
    ledger.parquet                                   later issues are dropped
    evaluation/, model/, pictures, report            what is made after training is deleted
    checkpoints/                                     newer ones, which were refused, are deleted
    tensorboard/                                     `Recorder(first_step=...)` hides later values

Every file is replaced whole and all of it may be done twice: a folder that a crash left in between is taken back anew.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from museg_ray.errors import CheckpointError
from museg_ray.files import PARTIAL, whole_file
from museg_ray.train import checkpoint
from museg_ray.train.ledger import LEDGER_SCHEMA, write_table
from museg_ray.train.state import DriverState, Notes

AFTER_TRAINING = ("evaluation/after.jsonl", "evaluation/swapped.jsonl", "model", "model.old", "report.html")
"""What a run makes once its last step is done; beside these the pictures."""
OUTPUTS = ("checkpoints", "tensorboard", "rollouts.parquet", "evaluation", "model", "model.old")
"""Folders of a run."""
OUTPUT_FILES = (
    "metrics.jsonl",
    "alarms.jsonl",
    "quarantine.jsonl",
    "failed_update.jsonl",
    "ledger.parquet",
    "summary.json",
    "report.html",
)
_PART = re.compile(r"steps-(\d+)-(\d+)\.parquet")

Row = dict[str, Any]


def rewind(run_dir: Path, state: DriverState) -> list[Row]:
    """Take the folder back to `state`; the rows of metrics.jsonl that stay.

    Raises:
        CheckpointError: the folder does not hold all that it held at the checkpoint.
    """
    step = state.step
    for newer in checkpoint.list_checkpoints(run_dir / checkpoint.CHECKPOINTS_DIR):
        if newer.step > step:
            checkpoint.remove(newer)
    rows = _keep_lines(run_dir / "metrics.jsonl", lambda row: row["step"] <= step)
    _keep_lines(run_dir / "quarantine.jsonl", lambda row: row["step"] <= step)
    _keep_lines(run_dir / "alarms.jsonl", lambda row: row["last_step"] <= step)
    num_responses = _rewind_rollouts(run_dir / "rollouts.parquet", step)
    num_issues = _rewind_ledger(run_dir / "ledger.parquet", step)
    notes = Notes(**state.notes)
    _require_all(run_dir / "metrics.jsonl", "steps", len(rows), notes.num_updates, step)
    _require_all(run_dir / "rollouts.parquet", "responses", num_responses, notes.num_responses, step)
    _require_all(run_dir / "ledger.parquet", "issues", num_issues, state.num_issues, step)
    for path in (*(run_dir / name for name in AFTER_TRAINING), *run_dir.glob("*.png")):
        _delete(path)
    return rows


def remove_outputs(run_dir: Path) -> None:
    """Delete what a run wrote that never reached a checkpoint. Its config.yaml goes last: until then the folder counts
    as a run's."""
    for path in (*(run_dir / name for name in (*OUTPUTS, *OUTPUT_FILES)), *run_dir.glob("*.png")):
        _delete(path)
    _delete(run_dir / "config.yaml")


def remove_partials(run_dir: Path) -> None:
    """Delete what a crash left half written: files by `whole_file`, checkpoints, an exported model."""
    for path in [*run_dir.rglob(f"*{PARTIAL}")]:
        _delete(path)


def _keep_lines(path: Path, is_kept: Callable[[Row], bool]) -> list[Row]:
    if not path.is_file():
        return []
    *lines, _torn = path.read_text(encoding="utf-8").split("\n")  # a whole line ends with a line feed
    try:
        kept = [(line, row) for line in lines if is_kept(row := json.loads(line))]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); restore it.") from None
    if not kept:
        path.unlink()
        return []
    with whole_file(path) as partial:
        partial.write_text("".join(f"{line}\n" for line, _ in kept), encoding="utf-8")
    return [row for _, row in kept]


def _rewind_rollouts(folder: Path, step: int) -> int:
    """Returns the number of responses that stay."""
    num_responses = 0
    for path in folder.glob("*.parquet"):
        match = _PART.fullmatch(path.name)
        if match is None:
            continue
        first, last = int(match[1]), int(match[2])
        if first > step:
            path.unlink()
            continue
        assert last <= step, f"{path} holds steps from before and after the checkpoint of step {step}"
        num_responses += pq.read_metadata(path).num_rows
    return num_responses


def _rewind_ledger(path: Path, step: int) -> int:
    """Returns the number of issues that stay."""
    if not path.is_file():
        return 0
    table = pq.read_table(path, schema=LEDGER_SCHEMA)
    table = table.filter(pc.field("step") <= step)
    write_table(table, path)
    return int(table.num_rows)


def _require_all(path: Path, what: str, found: int, expected: int, step: int) -> None:
    if found != expected:
        raise CheckpointError(
            f"{path} holds {found} {what} up to step {step}; at that step's checkpoint it held {expected}. The run "
            "folder was changed or is damaged; restore the file, or start a new run from "
            f"`museg export {path.parent / checkpoint.CHECKPOINTS_DIR} MODEL_DIR`."
        )


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
