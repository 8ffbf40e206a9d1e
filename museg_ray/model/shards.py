"""The learner's files in a checkpoint: their names, and reading tensors out of them.

    learner.json                      {"format": 1, "num_shards": 2, ...}
    shard-00000-of-00002.safetensors  a share of the tensors: KIND/NAME
    rng-00000.pt                      random state of a rank

No tensor is in two shards; which one is in which does not matter.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from museg_ray.errors import CheckpointError

FORMAT = 1
FACTS_FILE = "learner.json"


def shard_name(index: int, count: int) -> str:
    return f"shard-{index:05d}-of-{count:05d}.safetensors"


def random_name(index: int) -> str:
    return f"rng-{index:05d}.pt"


def read_facts(folder: Path) -> dict[str, Any]:
    """What `learner.json` says.

    Raises:
        CheckpointError: it cannot be read, or is of another format.
    """
    path = folder / FACTS_FILE
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        form, _ = facts["format"], int(facts["num_shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {folder} is no learner's checkpoint.") from error
    if form != FORMAT:
        raise CheckpointError(
            f"{path} has format {form}; this version of museg_ray reads format {FORMAT}. Use the version that wrote it."
        )
    return facts


def expected_files(folder: Path) -> list[str]:
    """The files that a whole folder has, by its `learner.json`: a file that is missing is else not missed.

    Raises:
        CheckpointError: as `read_facts`.
    """
    count = int(read_facts(folder)["num_shards"])
    return [FACTS_FILE, *(shard_name(i, count) for i in range(count)), *(random_name(i) for i in range(count))]


class Shards:
    """All tensors of a folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: a shard cannot be read.
        """
        self.folder = folder
        self.facts = read_facts(folder)
        self._files: dict[str, Any] = {}
        count = int(self.facts["num_shards"])
        for index in range(count):
            path = folder / shard_name(index, count)
            try:
                file = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}.") from error
            self._files |= dict.fromkeys(file.keys(), file)

    def names(self, kind: str) -> Iterator[str]:
        """NAME of every KIND/NAME."""
        return (name.removeprefix(f"{kind}/") for name in self._files if name.startswith(f"{kind}/"))

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        return tuple(self._files[f"{kind}/{name}"].get_slice(f"{kind}/{name}").get_shape())

    def tensor(self, kind: str, name: str) -> torch.Tensor:
        return self._files[f"{kind}/{name}"].get_tensor(f"{kind}/{name}")
