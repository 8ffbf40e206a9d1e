"""What lies beside a run's books when it goes back to a checkpoint. Nothing whole is deleted.

checkpoints/                           newer ones, which were refused, lose their names and stay
evaluation/after, model/, report …     made after training: they stay until the run makes them anew
the books                              go back by themselves (books.py)
tensorboard/                           `Recorder.rewind` hides later values
events.jsonl                           stays: it tells what happened to the run
"""

from pathlib import Path

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.files import is_partial, remove_files
from museg_ray.model.qwen_vl import is_model_file

MODEL_DIR, EVALUATION_DIR, ROLLOUTS_DIR, INPUTS_DIR = "model", "evaluation", "rollouts.parquet", "inputs"


def set_later_aside(run_dir: Path, step: int, run_id: str) -> list[Path]:
    """The run's checkpoints of later steps cannot be gone on with any more, and stay under other names: where each is
    now."""
    present = checkpoints.list_checkpoints(run_dir / checkpoints.CHECKPOINTS_DIR)
    later = [newer for newer in present if newer.step > step and not checkpoints.belongs_elsewhere(newer, run_id)]
    return [checkpoints.set_aside(newer) for newer in later]


def remove_partials(run_dir: Path, run_id: str) -> None:
    """Delete what a crash left half written: files by `whole_file`, checkpoints, an exported model."""
    checkpoints.remove_leftovers(run_dir / checkpoints.CHECKPOINTS_DIR, run_id)
    for folder in (run_dir, *(run_dir / name for name in (EVALUATION_DIR, ROLLOUTS_DIR, INPUTS_DIR))):
        for path in [] if folder.is_symlink() else [each for each in folder.glob(".*") if is_partial(each.name)]:
            if path.is_dir():
                remove_files(path, is_model_file)
            elif not path.is_symlink():
                path.unlink()
