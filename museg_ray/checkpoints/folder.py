"""Checkpoints on disk: written aside, renamed when whole, verified before they are used, retired when there are enough.

    RUN/checkpoints/step-000050/
        learner/         what the learner's ranks write: weights, optimiser, random states
        driver.json      `state.DriverState`: samplers, weight version, books
        config.yaml      the configuration that trained up to here
        manifest.json    size and BLAKE3 of every other file; written last

Invariant: a folder of this name is whole. It is built under `step-000050.partial`, its files and folders are synced to
the disk, and only then does it get its name; it loses the name before the first of its files is deleted. So a crash at
any moment leaves older checkpoints as they are, and no half one that could be taken for whole.

Invariant: only what bears the run's id (in `driver.json`, written first) is deleted, and of that only what a checkpoint
has. `checkpoints` may be a link to other storage, where other runs' checkpoints lie, or a person's files.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from museg_ray.checkpoints.state import DriverState, read_state
from museg_ray.config.learning import CheckpointConfig
from museg_ray.errors import CheckpointError
from museg_ray.files import PARTIAL, described, free_path, hash_of, is_partial, remove_files, sync
from museg_ray.model.shards import expected_files

CHECKPOINTS_DIR = "checkpoints"
LEARNER_DIR, STATE_FILE, CONFIG_FILE, MANIFEST_FILE = "learner", "driver.json", "config.yaml", "manifest.json"
MANIFEST_FORMAT = 1
SET_ASIDE = ".set-aside"
_NAME = re.compile(r"step-(\d{6,})")
_LEFTOVER = re.compile(rf"step-\d{{6,}}{re.escape(PARTIAL)}(-\d+)?")
_FILE = re.compile(
    rf"{CONFIG_FILE}|{STATE_FILE}|{MANIFEST_FILE}|{LEARNER_DIR}/(learner\.json|(shard|rng)-\d{{5}}[\w.-]*)"
)
"""What may be in one: all else was put there by others."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint by its name; `verify` tells whether it can be used."""

    folder: Path
    step: int
    """The last one that it holds."""

    @property
    def learner_dir(self) -> Path:
        return self.folder / LEARNER_DIR

    @property
    def config_path(self) -> Path:
        return self.folder / CONFIG_FILE

    def read_state(self) -> DriverState:
        """
        Raises:
            CheckpointError: `driver.json` cannot be read, or is of another format.
        """
        return read_state(self.folder / STATE_FILE)


def partial_folder(parent: Path, step: int) -> Path:
    """Where the checkpoint of a step is built: nothing is there yet."""
    return free_path(parent / f"{_name(step)}{PARTIAL}")


def as_checkpoint(folder: Path) -> Checkpoint:
    """
    Raises:
        CheckpointError: the folder is not named like a checkpoint, or is not there.
    """
    match = _NAME.fullmatch(folder.name)
    if match is None or not folder.is_dir():
        raise CheckpointError(f"{folder} is not a checkpoint; expected a folder such as RUN/checkpoints/step-000050.")
    return Checkpoint(folder, int(match[1]))


def list_checkpoints(parent: Path) -> list[Checkpoint]:
    """All of a run, oldest first, whole or damaged; none where the folder is not there."""
    folders = [path for path in parent.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted((as_checkpoint(folder) for folder in folders), key=lambda checkpoint: checkpoint.step)


def publish(partial: Path, of_learner: Mapping[str, dict[str, object]] | None = None) -> Checkpoint:
    """Give a complete partial folder its manifest and its name. All of it is on the disk before it is renamed.

    Args:
        partial: see `partial_folder`.
        of_learner: `files.described` of those files in `learner` that their writers have hashed already; the others are
            hashed here.

    Raises:
        OSError: disk full and the like; the folder keeps its partial name.
        CheckpointError: a file of the learner's is not there, or not whole, though its rank has written it.
    """
    _check_files(partial)
    manifest, paths = partial / MANIFEST_FILE, sorted(path for path in partial.rglob("*") if path.is_file())
    known = {partial / LEARNER_DIR / name: file for name, file in (of_learner or {}).items()}
    for path, file in known.items():
        _verify_size(path, file)
    files = {path.relative_to(partial).as_posix(): known.get(path) or described(path) for path in paths}
    files.pop(MANIFEST_FILE, None)
    _write_synced(manifest, json.dumps({"format": MANIFEST_FORMAT, "files": files}, indent=1))
    for folder, _, _ in os.walk(partial):
        sync(Path(folder))
    whole = partial.with_name(partial.name.partition(PARTIAL)[0])
    partial.rename(whole)
    sync(whole.parent)
    return as_checkpoint(whole)


def verify(checkpoint: Checkpoint, run_id: str | None = None) -> None:
    """Compare every file with the manifest, bit by bit.

    Args:
        run_id: of the run that it must belong to; None: any.

    Raises:
        CheckpointError: names the first file that is missing, or of another size or content.
    """
    state = checkpoint.read_state()
    if run_id is not None and state.run_id != run_id:
        raise CheckpointError(f"{checkpoint.folder} belongs to another run.")
    if state.step != checkpoint.step:
        raise CheckpointError(f"{checkpoint.folder} holds step {state.step}: it has another one's name.")
    listed = _read_manifest(checkpoint.folder / MANIFEST_FILE)
    for name, expected in listed.items():
        try:
            _verify_file(checkpoint.folder / name, expected)
        except OSError as error:
            raise CheckpointError(f"{checkpoint.folder / name} cannot be read: {error.strerror or error}.") from error
    for name in _check_files(checkpoint.folder):
        if name not in listed:
            raise CheckpointError(f"{checkpoint.folder / MANIFEST_FILE} does not list {name}: it is damaged.")


def _verify_file(path: Path, expected: Mapping[str, object]) -> None:
    _verify_size(path, expected)
    if hash_of(path) != expected["blake3"]:
        raise CheckpointError(f"{path} does not hold what was written to it: its BLAKE3 differs.")


def _verify_size(path: Path, expected: Mapping[str, object]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing.")
    size_bytes = path.stat().st_size
    if size_bytes != expected["size_bytes"]:
        raise CheckpointError(f"{path} has {size_bytes} bytes; {expected['size_bytes']} were written.")


def _check_files(folder: Path) -> list[str]:
    """The files that every checkpoint has, all ranks' among them.

    Raises:
        CheckpointError: one is missing: a manifest that lists what happens to be there would not tell.
    """
    learner_files = [f"{LEARNER_DIR}/{name}" for name in expected_files(folder / LEARNER_DIR)]
    names = [STATE_FILE, CONFIG_FILE, *learner_files]
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing.")
    return names


def first_whole(candidates: Iterable[Checkpoint], run_id: str | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The first one that verifies, and why those before it do not."""
    refusals: list[str] = []
    for checkpoint in candidates:
        try:
            verify(checkpoint, run_id)
            return checkpoint, refusals
        except CheckpointError as error:
            refusals.append(f"The checkpoint of step {checkpoint.step} cannot be used: {error}")
    return None, refusals


def newest_whole(parent: Path, run_id: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a run that verifies, and why those that are newer do not."""
    return first_whole(reversed(list_checkpoints(parent)), run_id)


def choose(parent: Path, best: bool) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint, or the one with the best score, that verifies; and why those before it do not.

    Raises:
        CheckpointError: there is none.
    """
    present = list_checkpoints(parent)
    order = reversed(_ranked(present) if best else present)
    checkpoint, refusals = first_whole(order)
    if checkpoint is None:
        raise CheckpointError(
            f"{parent} holds no whole checkpoint{' with a score' if best else ''}. {' '.join(refusals)}".rstrip()
        )
    return checkpoint, refusals


def retire(parent: Path, config: CheckpointConfig, run_id: str) -> None:
    """Delete what neither `keep_last` nor `keep_best` keeps; of equally good ones the newer counts as better."""
    present = [checkpoint for checkpoint in list_checkpoints(parent) if _is_of(checkpoint.folder, run_id)]
    ranked = _ranked(present)
    kept = {*present[-config.keep_last :], *(ranked[-config.keep_best :] if config.keep_best else ())}
    for checkpoint in present:
        if checkpoint not in kept:
            remove(checkpoint)


def remove(checkpoint: Checkpoint) -> None:
    """It loses its name first: a crash in between leaves a leftover and no half checkpoint."""
    doomed = free_path(checkpoint.folder.with_name(checkpoint.folder.name + PARTIAL))
    checkpoint.folder.rename(doomed)
    remove_files(doomed, _is_own)


def belongs_elsewhere(checkpoint: Checkpoint, run_id: str) -> bool:
    """True of a link, and of another run's; not of one whose `driver.json` cannot be read."""
    try:
        return checkpoint.folder.is_symlink() or checkpoint.read_state().run_id != run_id
    except CheckpointError:
        return False


def set_aside(checkpoint: Checkpoint) -> Path:
    """Take its name from a checkpoint that must not be gone on with, and leave all else; where it is now."""
    aside = free_path(checkpoint.folder.with_name(checkpoint.folder.name + SET_ASIDE))
    return checkpoint.folder.rename(aside)


def remove_leftovers(parent: Path, run_id: str) -> None:
    """Delete what a crash, or a checkpoint that was given up, left half. No checkpoint of the run may be under way."""
    for path in parent.glob("step-*"):
        if _LEFTOVER.fullmatch(path.name) and _is_of(path, run_id):
            remove_files(path, _is_own)


def _is_of(folder: Path, run_id: str) -> bool:
    """True of what the run has made itself. One without whole files is nobody's loss."""
    if folder.is_symlink():
        return False
    try:
        return read_state(folder / STATE_FILE).run_id == run_id
    except CheckpointError:
        return not any(path.is_file() and not is_partial(path.name) for path in folder.rglob("*"))


def _is_own(name: str) -> bool:
    return _FILE.fullmatch(name) is not None or is_partial(name)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _ranked(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Those with a score by the newest one's metric, the best one last, and of equal ones the newest."""
    scored: list[tuple[str, float, int, Checkpoint]] = []
    for checkpoint in checkpoints:
        try:
            state = checkpoint.read_state()
        except CheckpointError:  # damaged: whoever wants to use it is told so by `verify`
            continue
        if state.score is not None:
            scored.append((state.best_metric, state.score, checkpoint.step, checkpoint))
    newest = max(scored, key=lambda each: each[2], default=None)
    compared = [each for each in scored if newest is not None and each[0] == newest[0]]
    return [checkpoint for *_, checkpoint in sorted(compared, key=lambda each: each[1:3])]


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def _read_manifest(path: Path) -> dict[str, dict[str, object]]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, files = manifest["format"], manifest["files"]
        listed = {str(name): {key: file[key] for key in ("size_bytes", "blake3")} for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    if found != MANIFEST_FORMAT:
        raise CheckpointError(f"{path} is of format {found}; this version of museg_ray reads {MANIFEST_FORMAT}.")
    return listed
