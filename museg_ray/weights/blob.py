"""A policy's weights as one array of bytes: one object of Ray's object store, read without a copy by every actor.

The bytes are a safetensors file under Hugging Face names, so that a blob can also be written to disk and loaded by
anything that reads safetensors.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from museg_ray.types import ByteArray

SHARED_MEMORY_DIR = Path("/dev/shm")


def weights_to_blob(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> ByteArray:
    """Pack tensors, on any device, into a blob.

    Args:
        named_tensors: Hugging Face names; tied weights once, as `named_parameters()` yields them.

    Returns:
        [size_bytes] uint8, read-only.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors}
    return np.frombuffer(save(tensors), dtype=np.uint8)


def read_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a blob's file on the CPU, one at a time, so that a large model is never in memory twice."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
            yield name, file.get_tensor(name)


@contextmanager
def blob_file(blob: ByteArray) -> Iterator[Path]:
    """The blob as a file for another process on this machine; deleted on exit.

    It lies in shared memory where that has room, else in the folder for temporary files.
    """
    with tempfile.NamedTemporaryFile(dir=_scratch_dir(blob.nbytes), prefix="museg-weights-") as file:
        blob.tofile(file)
        file.flush()
        yield Path(file.name)


def _scratch_dir(size_bytes: int) -> Path | None:
    if SHARED_MEMORY_DIR.is_dir() and shutil.disk_usage(SHARED_MEMORY_DIR).free > size_bytes:
        return SHARED_MEMORY_DIR
    return None  # tempfile's own choice
