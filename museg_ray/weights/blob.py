"""A policy's weights as one array of bytes: one object of Ray's object store, read without a copy by every actor.

The bytes are a safetensors file under Hugging Face names, so that a blob can also be written to disk and loaded by
anything that reads safetensors. Its metadata names the parts of the model that it leaves out, since they are frozen.
"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from museg_ray.types import ByteArray

SHARED_MEMORY_DIR = Path("/dev/shm")
_FROZEN = "frozen"
"""Key of the metadata that holds names of parts, with spaces between."""


class Part(StrEnum):
    """What is frozen or trained as a whole."""

    LANGUAGE = "language"
    """The language model with embeddings and output head."""
    TOWER = "tower"
    """The vision tower."""
    MERGER = "merger"
    """The layers between tower and language model."""


VISION = frozenset({Part.TOWER, Part.MERGER})
"""What video features come from."""


def part_of(name: str) -> Part:
    """The part that a weight belongs to; by Hugging Face's names and by vLLM's, of Qwen2.5-VL and Qwen3-VL."""
    _, is_vision, name_in_vision = name.partition("visual.")
    if not is_vision:
        return Part.LANGUAGE
    return Part.MERGER if name_in_vision.startswith(("merger.", "deepstack_merger_list.")) else Part.TOWER


def weights_to_blob(
    named_tensors: Iterable[tuple[str, torch.Tensor]], frozen: Collection[Part] = frozenset()
) -> ByteArray:
    """Pack tensors, on any device, into a blob.

    Args:
        named_tensors: Hugging Face names; tied weights once, as `named_parameters()` yields them. Every weight of the
            parts that are not frozen, and none of those that are.
        frozen: engines keep what they have of these parts.

    Returns:
        [size_bytes] uint8, read-only.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors}
    assert not {part_of(name) for name in tensors} & set(frozen), "frozen weights are not sent"
    return np.frombuffer(save(tensors, metadata={_FROZEN: " ".join(sorted(frozen))}), dtype=np.uint8)


def frozen_parts(path: Path) -> frozenset[Part]:
    """The parts that a blob's file leaves out."""
    with safe_open(path, framework="pt") as file:
        return frozenset(Part(part) for part in file.metadata()[_FROZEN].split())


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """What a blob's file has, without reading the weights."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a blob's file on the CPU, one at a time, so that a large model is never in memory twice."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
            yield name, file.get_tensor(name)


@contextmanager
def blob_file(blob: ByteArray) -> Iterator[Path]:
    """The blob as a file for another process of this user on this machine; gone on exit.

    It lies in shared memory where that has room, else in the folder for temporary files. It has no name there, which
    would stay behind if this process was killed: the path leads through this process.
    """
    with tempfile.TemporaryFile(dir=_scratch_dir(blob.nbytes)) as file:
        blob.tofile(file)
        file.flush()
        yield Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")


def _scratch_dir(size_bytes: int) -> Path | None:
    if SHARED_MEMORY_DIR.is_dir() and shutil.disk_usage(SHARED_MEMORY_DIR).free > size_bytes:
        return SHARED_MEMORY_DIR
    return None  # tempfile's own choice
