"""Opens a run's folder: a new one, or one that is gone on with from its newest whole checkpoint.

folder                            run.resume: false     run.resume: true
not there, or empty               begun                 begun
holds a whole checkpoint          refused               gone on with, if the configuration fits
all its checkpoints are damaged   refused               refused
a run without a checkpoint        refused               begun anew, what it holds is deleted
a run that has ended              refused               left alone
something else                    refused               refused
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from museg_ray.checkpoints.folder import CHECKPOINTS_DIR, CONFIG_FILE, Checkpoint, newest_whole
from museg_ray.checkpoints.state import DriverState
from museg_ray.config.load import load_config, save_config
from museg_ray.config.schema import Config
from museg_ray.errors import CheckpointError, ConfigError
from museg_ray.files import whole_file
from museg_ray.runs.changes import check_changes
from museg_ray.runs.folder import is_empty, locked, make_run_folder, not_empty, require_empty
from museg_ray.runs.rewind import remove_outputs, remove_partials


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
    resumed: Resumed | None = None
    has_ended: bool = False
    notices: list[str] = field(default_factory=list)
    """What a person should know about how it was opened."""


@contextmanager
def open_run(config: Config) -> Iterator[OpenRun]:
    """The folder for this run, which no other process can open until the block ends.

    Nothing of what the folder holds is changed yet but leftovers of a crash, and a run without a checkpoint.

    Raises:
        ConfigError: `run.resume` without `run.name`, or a configuration that does not fit the run to be resumed.
        CheckpointError: every checkpoint is damaged.
        ResourceError: the folder cannot be made, holds something else, or another process has it.
    """
    if config.run.resume and not config.run.name:
        raise ConfigError(
            "run.resume needs run.name (`museg demo`: --run-dir): without one each start makes a folder of its own."
        )
    folder = make_run_folder(Path(config.run.dir), config.run.name)
    with locked(folder):
        if config.run.resume:
            yield _taken_up(folder, config)
        else:
            require_empty(folder)
            yield OpenRun(folder)


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


def _taken_up(folder: Path, config: Config) -> OpenRun:
    if is_empty(folder):
        remove_partials(folder)  # of a run that was killed in its first moment
        return OpenRun(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise not_empty(folder)
    if (folder / "summary.json").is_file():
        return OpenRun(folder, has_ended=True)
    remove_partials(folder)
    checkpoint, refusals = newest_whole(folder / CHECKPOINTS_DIR)
    if checkpoint is not None:
        resumed = _resumed(checkpoint, config)
        older = [f"going on from step {checkpoint.step}: the newest checkpoint that is whole"] if refusals else []
        return OpenRun(folder, resumed, notices=[*refusals, *older, *resumed.changes])
    if refusals:
        raise CheckpointError(
            f"No checkpoint of the run {folder} is whole. {' '.join(refusals)} Restore one from a copy; or start anew: "
            "remove the folder, or choose another run.name."
        )
    remove_outputs(folder)
    return OpenRun(folder, notices=[f"the run in {folder} had not reached a checkpoint: it is begun anew"])


def _resumed(checkpoint: Checkpoint, config: Config) -> Resumed:
    state = checkpoint.read_state()
    return Resumed(checkpoint, state, check_changes(load_config(checkpoint.config_path), config, state.step))
