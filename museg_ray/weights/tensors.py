"""Tensors into a weights file, and out of one."""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from museg_ray.weights.layout import Layout, Part

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""safetensors' names."""
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


def tensor_layout(tensors: Mapping[str, torch.Tensor], frozen: Collection[Part] = ()) -> Layout:
    """For these weights, whole as they are."""
    return Layout.of({name: (DTYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}, frozen)


def fill(file: Path, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write whole tensors, on the CPU, into a file of their layout."""
    target = mapped(file)
    for name, tensor in tensors.items():
        held, begin = tensor.detach().contiguous().flatten().view(torch.uint8), layout.offsets[name]
        copy_bytes(held, target[begin : begin + len(held)])


def copy_bytes(held: torch.Tensor, target: torch.Tensor) -> None:
    """Both [n] uint8 on the CPU. By numpy, which is a third faster than torch's `copy_` in one thread (torch 2.13)."""
    np.copyto(target.numpy(), held.numpy())


def mapped(file: Path) -> torch.Tensor:
    """[size_bytes] uint8, the file itself. It is filled again and again; another one may come under its path."""
    status = file.stat()
    return _mapped(file, status.st_dev, status.st_ino)


@lru_cache(maxsize=2)
def _mapped(file: Path, device: int, inode: int) -> torch.Tensor:
    return torch.from_numpy(np.memmap(file, np.uint8, "r+"))


def frozen_parts(path: Path) -> frozenset[Part]:
    """The parts that a file leaves out."""
    return frozenset(Part(part) for part in _header(mapped(path))["__metadata__"]["frozen"].split())


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """What a file has, without reading the weights."""
    return {name: tuple(entry["shape"]) for name, entry in _entries(mapped(path))}


def read_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a file on the CPU: the mapped file itself and no copy, for as long as nobody fills it anew.

    The mapping stays from push to push: to map its pages again, 4 KiB at a time, takes longer than to copy them.
    """
    content = mapped(path)
    start = 8 + _header_bytes(content)
    for name, entry in _entries(content):
        begin, end = entry["data_offsets"]
        yield name, content[start + begin : start + end].view(TORCH_DTYPES[entry["dtype"]]).view(entry["shape"])


def _entries(content: torch.Tensor) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, entry) for name, entry in _header(content).items() if name != "__metadata__")


def _header(content: torch.Tensor) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : 8 + _header_bytes(content)].numpy().tobytes())
    return header


def _header_bytes(content: torch.Tensor) -> int:
    return int.from_bytes(content[:8].numpy().tobytes(), "little")
