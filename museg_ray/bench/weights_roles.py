"""The processes of `museg bench weights`: each stands for a rank or an engine, with its part of made-up weights."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from museg_ray.errors import ResourceError
from museg_ray.weights.file import held
from museg_ray.weights.tensors import copy_bytes, mapped, read_weights, tensor_layout

TENSOR_ELEMENTS = 1 << 24
SHARED_MEMORY = Path("/dev/shm")


def made_up(size_bytes: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """bfloat16 weights of about so many bytes, as whole tensors."""
    count = max(1, math.ceil(size_bytes / 2 / TENSOR_ELEMENTS))
    shape = (size_bytes // 2 // count,)
    return {f"layer.{index}": torch.ones(shape, dtype=torch.bfloat16, device=device) for index in range(count)}


class Role:
    """One process; `all` has several do their part of a push at once."""

    def __init__(self, make: "MakePart", size_bytes: int, index: int, count: int) -> None:
        self._pipe, theirs = get_context("spawn").Pipe()
        arguments = (theirs, make, size_bytes, index, count)
        self._process = get_context("spawn").Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @staticmethod
    def all(roles: "Sequence[Role]", file: Path | None, version: int) -> list[Any]:
        for role in roles:
            role._pipe.send((file, version))
        return [role._answer() for role in roles]

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise ResourceError("A process of the benchmark has ended; is there memory enough?") from None


Part = Callable[[Path | None, int], Any]
"""(file, version) -> whatever the next one needs."""
MakePart = Callable[[int, int, int], Part]


def _serve(pipe: Connection, make: MakePart, size_bytes: int, index: int, count: int) -> None:
    torch.set_num_threads(1)
    part = make(size_bytes, index, count)
    pipe.send(None)
    while True:
        pipe.send(part(*pipe.recv()))


def rank(size_bytes: int, index: int, count: int) -> Part:
    """Holds a slice of every weight, as at ZeRO 3, and writes it."""
    layout = tensor_layout(made_up(size_bytes, "meta"))
    slices = {name: weight.chunk(count)[index] for name, weight in made_up(size_bytes, "meta").items()}
    held_here = {name: torch.ones_like(weight, device="cpu") for name, weight in slices.items()}

    def write(file: Path | None, version: int) -> None:
        assert file is not None
        target = mapped(file)
        for name, weight in held_here.items():
            source = weight.view(torch.uint8)
            begin = layout.offsets[name] + index * len(source)
            copy_bytes(source, target[begin : begin + len(source)])

    return write


def engine(size_bytes: int, index: int, count: int) -> Part:
    """Copies all weights out of the file into its own."""
    own = made_up(size_bytes)

    def load(file: Path | None, version: int) -> None:
        assert file is not None
        with held(file, version):
            for name, weight in read_weights(file):
                own[name].copy_(weight)

    return load


def naive_rank(size_bytes: int, index: int, count: int) -> Part:
    """Gathers whole copies, packs them into one object and puts that into a store in shared memory."""
    weights = made_up(size_bytes)
    store = tempfile.TemporaryFile(dir=SHARED_MEMORY)  # noqa: SIM115 (lives as long as the process)

    def put(file: Path | None, version: int) -> Path:
        copies = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}
        store.seek(0)
        store.write(save(copies))
        store.flush()
        return Path(f"/proc/{os.getpid()}/fd/{store.fileno()}")

    return put


def naive_engine(size_bytes: int, index: int, count: int) -> Part:
    """Writes what is in the store into a file of its own and loads that."""
    own = made_up(size_bytes)

    def load(file: Path | None, version: int) -> None:
        assert file is not None
        with tempfile.TemporaryFile(dir=SHARED_MEMORY) as copy:
            np.memmap(file, np.uint8, "r").tofile(copy)
            copy.flush()
            for name, weight in read_weights(Path(f"/proc/self/fd/{copy.fileno()}")):
                own[name].copy_(weight)

    return load
