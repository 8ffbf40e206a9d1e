"""What a run has made beside its books, taken away: when it goes back to a checkpoint, and when it is begun anew.

    evaluation/after, swapped, model/, pictures, report    made after training: deleted
    checkpoints/                                           newer ones, which were refused, are deleted
    the books                                              go back by themselves (books.py)
    tensorboard/                                           `Recorder.rewind` hides later values
    events.jsonl                                           stays: it tells what happened to the run

All of it may be done twice: a folder that a crash left in between is taken back anew.
"""

import shutil
from pathlib import Path

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.files import PARTIAL

AFTER_TRAINING = ("evaluation/after.jsonl", "evaluation/swapped.jsonl", "model", "model.old", "report.html")
"""What a run makes once its last step is done; beside these the pictures."""
OUTPUTS = ("checkpoints", "tensorboard", "rollouts.parquet", "evaluation", "model", "model.old")
"""Folders of a run."""
OUTPUT_FILES = (
    "metrics.jsonl",
    "alarms.jsonl",
    "quarantine.jsonl",
    "failed_update.jsonl",
    "ledger.jsonl",
    "events.jsonl",
    "summary.json",
    "report.html",
)


def remove_later(run_dir: Path, step: int) -> None:
    """Delete what the run made after `step` beside its books."""
    for newer in checkpoints.list_checkpoints(run_dir / checkpoints.CHECKPOINTS_DIR):
        if newer.step > step:
            checkpoints.remove(newer)
    for path in (*(run_dir / name for name in AFTER_TRAINING), *run_dir.glob("*.png")):
        _delete(path)


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


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
