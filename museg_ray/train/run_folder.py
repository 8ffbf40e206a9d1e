"""A run's folder: for one run only, and its files written atomically."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from museg_ray.errors import ResourceError
from museg_ray.files import whole_file

MAX_RUNS_A_SECOND = 100


def create_run_folder(parent: Path, name: str) -> Path:
    """A folder for one run: new, or there and empty.

    With an empty `name` it is named by the time; runs that start in the same second get different ones.

    Raises:
        ResourceError: the folder holds something already, or cannot be made.
    """
    parent = parent.expanduser().resolve()
    try:
        if name:
            return _named_folder(parent / name)
        return _timed_folder(parent)
    except OSError as error:
        raise ResourceError(
            f"Cannot create the run folder {parent / name}: {error.strerror}. Set run.dir to a folder you can write to."
        ) from error


def _named_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ResourceError(
            f"The run folder {folder} is not empty; a run never writes into another's folder. "
            "Choose another one, or remove it."
        )
    return folder


def _timed_folder(parent: Path) -> Path:
    stamp = time.strftime("run-%Y%m%d-%H%M%S")
    for attempt in range(1, MAX_RUNS_A_SECOND):
        folder = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)  # exclusive: a run that starts in the same second takes the next name
            return folder
        except FileExistsError:
            continue
    raise ResourceError(f"{MAX_RUNS_A_SECOND} runs started in {parent} within one second; set run.name.")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
