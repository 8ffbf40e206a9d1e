"""`museg bench weights`: a push from two ranks to four engines of this machine, and to a second machine, over plain
copies of as many bytes; beside it the way that every published trainer goes, whole tensors through one process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from threading import Event, Thread

import psutil
import torch

from museg_ray.bench.result import BenchResult, Tell, at_most, compared
from museg_ray.bench.weights_machine import second_machine
from museg_ray.bench.weights_real import push_phases
from museg_ray.bench.weights_roles import Role, engine, made_up, naive_engine, naive_rank, rank
from museg_ray.weights.host import WeightHost
from museg_ray.weights.tensors import tensor_layout

NUM_RANKS, NUM_ENGINES = 2, 4
NAIVE_SHARE = 4
"""The other way holds ten copies at once: it gets so much less."""
COPY_BYTES = 1 << 28
MIB, GIB = 1024**2, 1024**3
TARGET_COPIES, TARGET_MIB, TARGET_CROSSED = 3.0, 256.0, 1.05
SAMPLE_S = 0.005


def bench_weights(size_gib: float, rounds: int, tell: Tell, is_real: bool = False) -> BenchResult:
    """Medians over `rounds` pushes.

    Raises:
        ResourceError: no room, see `WeightHost`; or a process failed.
    """
    size_bytes = int(size_gib * GIB)
    tell("a push to four engines")
    pushes, beside_mib = _pushes(size_bytes, rounds)
    copy_s, write_s, read_s = (median(column) for column in zip(*pushes, strict=True))
    tell("the same by whole tensors through one process")
    naive_s = NAIVE_SHARE * median(_naive_push(size_bytes // NAIVE_SHARE) for _ in range(max(1, rounds // 2)))
    case = f"{size_gib:g} GiB, {NUM_RANKS} ranks, {NUM_ENGINES} engines"
    ratio = median((write + read) / copy for copy, write, read in pushes)
    rows = [
        compared("push / one plain copy", case, 1e3 * (write_s + read_s), 1e3 * copy_s),
        compared("ranks write / one plain copy", case, 1e3 * write_s, 1e3 * copy_s),
        compared("engines copy (their pause) / one plain copy", case, 1e3 * read_s, 1e3 * copy_s),
        compared("by whole tensors, blob, files / push", case, 1e3 * naive_s, 1e3 * (write_s + read_s)),
    ]
    targets = [
        at_most("push over plain copies of its bytes", ratio, TARGET_COPIES),
        at_most("MiB a process has beside the file and its own weights", beside_mib, TARGET_MIB),
    ]
    tell("a second machine")
    if (second := second_machine(size_bytes)) is not None:
        rows.append(compared("to a second machine / one plain copy", case, 1e3 * second["fetch_s"], 1e3 * copy_s))
        targets.append(at_most("bytes that cross to it over those of the weights", second["crossed"], TARGET_CROSSED))
    if is_real:
        rows += push_phases(tell)
    return BenchResult("weights", tuple(rows), tuple(targets))


def _pushes(size_bytes: int, rounds: int) -> tuple[list[tuple[float, float, float]], float]:
    """Seconds of a plain copy, of the ranks' writing and of the engines' reading; most MiB that a process takes."""
    layout, host = tensor_layout(made_up(size_bytes, "meta")), WeightHost()
    host.reserve(layout)
    ranks = [Role(rank, size_bytes, index, NUM_RANKS) for index in range(NUM_RANKS)]
    engines = [Role(engine, size_bytes, 0, 1) for _ in range(NUM_ENGINES)]
    source, target = (torch.ones(COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    torch.set_num_threads(1)
    try:
        for version in (1, 2):  # the first touch of every page
            _push(host, ranks, engines, version)
        seconds = list[tuple[float, float, float]]()
        with _most_memory([role.pid for role in (*ranks, *engines)]) as most_mib:
            for version in range(3, 3 + rounds):
                began_s = time.perf_counter()
                target.copy_(source)
                copy_s = (time.perf_counter() - began_s) * size_bytes / COPY_BYTES
                seconds.append((copy_s, *_push(host, ranks, engines, version)))
        return seconds, max(most_mib)
    finally:
        host.close()
        for role in (*ranks, *engines):
            role.close()


def _push(host: WeightHost, ranks: list[Role], engines: list[Role], version: int) -> tuple[float, float]:
    began_s = time.perf_counter()
    file = host.begin(version, 0.0)
    Role.all(ranks, file, version)
    host.commit(version)
    written_s = time.perf_counter()
    Role.all(engines, file, version)
    return written_s - began_s, time.perf_counter() - written_s


def _naive_push(size_bytes: int) -> float:
    """One rank holds all; what it packs goes to a store, and from there into a file of each engine."""
    holder = Role(naive_rank, size_bytes, 0, 1)
    engines = [Role(naive_engine, size_bytes, 0, 1) for _ in range(NUM_ENGINES)]
    try:
        for version in (1, 2):
            began_s = time.perf_counter()
            (store,) = Role.all([holder], None, version)
            Role.all(engines, store, version)
        return time.perf_counter() - began_s
    finally:
        for role in (holder, *engines):
            role.close()


@contextmanager
def _most_memory(pids: list[int]) -> Iterator[list[float]]:
    """MiB of private memory that each process takes at most inside the block, beyond what it had before."""
    processes, ended = [psutil.Process(pid) for pid in pids], Event()
    before = [_private_mib(process) for process in processes]
    most = [0.0] * len(pids)

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            for index, process in enumerate(processes):
                most[index] = max(most[index], _private_mib(process) - before[index])

    watching = Thread(target=watch, daemon=True)
    watching.start()
    yield most
    ended.set()
    watching.join()


def _private_mib(process: psutil.Process) -> float:
    memory = process.memory_info()
    private: int = memory.rss - memory.shared
    return private / MIB
