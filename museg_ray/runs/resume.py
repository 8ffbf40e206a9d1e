"""Opens a run's folder: a new one, or one that is gone on with from its newest whole checkpoint.

folder                              run.resume: false     run.resume: true
not there, or empty                 begun                 begun
holds a whole checkpoint            refused *             gone on with, if configuration and data fit
all its checkpoints are damaged     refused *             refused *
steps in its books, no checkpoint   refused *             refused *
a copy, `checkpoints` being a link  refused *             refused *
a run that had made no step         refused *             begun in the same folder
a run that has ended                refused *             left alone
something else                      refused               refused

* run.restart: moved aside as a whole, and begun under its name.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from museg_ray.checkpoints.folder import CHECKPOINTS_DIR, CONFIG_FILE, Checkpoint, newest_whole
from museg_ray.checkpoints.state import DriverState
from museg_ray.config.load import load_config, save_config
from museg_ray.config.schema import Config
from museg_ray.errors import CheckpointError, ConfigError, ResourceError
from museg_ray.files import whole_file
from museg_ray.runs.changes import check_changes
from museg_ray.runs.folder import MARKER_FILE, is_original, is_unused, locked, make_run_folder, move_aside, read_run_id
from museg_ray.runs.rewind import ROLLOUTS_DIR, remove_partials

BEGIN_ANEW = "or begin anew by run.restart=true, which moves what is there aside as a whole."


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a run goes on from."""

    checkpoint: Checkpoint
    state: DriverState
    changes: list[str]
    """What differs from the configuration up to there."""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run's folder, locked."""

    folder: Path
    run_id: str
    resumed: Resumed | None = None
    is_used: bool = False
    """Books are in it, of a life of the run before this one."""
    has_ended: bool = False
    notices: list[str] = field(default_factory=list)
    """What a person should know about how it was opened."""


@contextmanager
def open_run(config: Config) -> Iterator[OpenRun]:
    """The folder for this run, which no other process can open until the block ends.

    Nothing of what the folder holds is changed yet but leftovers of a crash.

    Raises:
        ConfigError: `run.resume` or `run.restart` without `run.name`, or a configuration that does not fit the run to
            be resumed.
        CheckpointError: there is nothing to go on from.
        ResourceError: the folder cannot be made, holds something else, or another process has it.
    """
    if (config.run.resume or config.run.restart) and not config.run.name:
        raise ConfigError(
            f"{'run.resume' if config.run.resume else 'run.restart'} needs run.name (`museg demo`: --run-dir): without "
            "one each start makes a folder of its own."
        )
    with ExitStack() as stack:
        folder = _lock_folder(config, stack)
        run_id = read_run_id(folder)
        try:
            opened = _opened(folder, run_id, config)
        except (CheckpointError, ResourceError) as refusal:
            if not config.run.restart:
                raise
            aside = move_aside(folder)
            stack.close()
            opened = OpenRun(_lock_folder(config, stack), read_run_id(folder))
            opened.notices.append(f"begun anew: the run that was there is now in {aside} ({refusal})")
        yield opened


def _lock_folder(config: Config, stack: ExitStack) -> Path:
    folder = make_run_folder(Path(config.run.dir), config.run.name)
    stack.enter_context(locked(folder))
    return folder


def save_run_config(config: Config, opened: OpenRun) -> None:
    """Write `config.yaml`; where a resumed run's differs from the one before, that one stays beside it."""
    path = opened.folder / CONFIG_FILE
    if opened.resumed and opened.resumed.changes:
        before = path.with_name(f"config.before-step-{opened.resumed.state.step:06d}.yaml")
        if not before.exists():  # else it is resumed from there a second time: the first one has trained up to there
            with whole_file(before) as partial:
                shutil.copyfile(path, partial)
    with whole_file(path) as partial:
        save_config(config, partial)


def _opened(folder: Path, run_id: str, config: Config) -> OpenRun:
    """
    Raises:
        CheckpointError, ResourceError: the run that is there can be moved aside and begun anew, but not be gone on
            with.
    """
    if is_unused(folder):
        return OpenRun(folder, run_id)
    if not config.run.resume:
        raise ResourceError(
            f"The run folder {folder} holds a run already. Go on with it by --resume (run.resume=true), choose another "
            f"run.name, {BEGIN_ANEW}"
        )
    if (folder / "summary.json").is_file():
        return OpenRun(folder, run_id, has_ended=True)
    checkpoint, refusals = _to_go_on_from(folder, run_id)
    remove_partials(folder, run_id)
    if checkpoint is None:
        return OpenRun(folder, run_id, is_used=True, notices=[f"the run in {folder} had made no step: it begins anew"])
    state = checkpoint.read_state()
    changes = check_changes(load_config(checkpoint.config_path), config, state.step)
    older = [f"going on from step {checkpoint.step}: the newest checkpoint that is whole"] if refusals else []
    resumed = Resumed(checkpoint, state, changes)
    return OpenRun(folder, run_id, resumed, is_used=True, notices=[*refusals, *older, *changes])


def _to_go_on_from(folder: Path, run_id: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and why those that are newer are none; None where the run has made no step.

    Raises:
        CheckpointError: it has made some, and none is whole. To begin anew would throw them away, unasked. Or they are
            another folder's too.
    """
    parent = folder / CHECKPOINTS_DIR
    if parent.is_symlink() and not parent.exists():
        raise CheckpointError(
            f"{parent} is a link to {parent.readlink()}, where nothing is. Make its storage visible again; {BEGIN_ANEW}"
        )
    # Invariant: one folder alone goes on with checkpoints. A copy of it would retire what the run itself goes on from.
    if parent.is_symlink() and not is_original(folder):
        raise CheckpointError(
            f"{folder} is a copy of a run's folder, or was moved here from another disk, and {parent} is a link to "
            f"{parent.readlink()}, where that run's own checkpoints are. Put a copy of them in the link's place; or, "
            f'if no other folder of the run is left, set "inode" to {folder.stat().st_ino} in {folder / MARKER_FILE}; '
            f"{BEGIN_ANEW}"
        )
    checkpoint, refusals = newest_whole(parent, run_id)
    if checkpoint is None and (refusals or _has_steps(folder)):
        why = " ".join(refusals) or f"Its books hold steps, and {parent} holds no checkpoint of it."
        raise CheckpointError(
            f"The run {folder} has no whole checkpoint to go on from. {why} Bring one back, e.g. from a copy; "
            f"{BEGIN_ANEW}"
        )
    return checkpoint, refusals


def _has_steps(folder: Path) -> bool:
    metrics, ledger = folder / "metrics.jsonl", folder / "ledger.jsonl"
    if metrics.is_file() and metrics.stat().st_size > 0:
        return True
    is_trained = ledger.is_file() and b'"trained"' in ledger.read_bytes()
    return is_trained or any((folder / ROLLOUTS_DIR).glob("part-*.parquet"))
