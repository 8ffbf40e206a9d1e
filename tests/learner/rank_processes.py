"""Processes that are the ranks of one process group, for as many learners one after another as a test file starts."""

import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from museg_ray.learner.process_group import open_store
from museg_ray.learner.rank import Rank


class RankProcesses:
    """`run` calls a function on every rank, with its `Rank` first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pipes: list[Connection] = []
        self._processes = []
        context = get_context("spawn")
        for _ in range(count):
            mine, theirs = context.Pipe()
            self._processes.append(context.Process(target=_serve, args=(theirs,), daemon=True))
            self._processes[-1].start()
            self._pipes.append(mine)
        self._port = self._call(0, open_store, "127.0.0.1", count)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each rank returns; `function` is one of a module that the processes can import."""
        for index, pipe in enumerate(self._pipes):
            pipe.send((function, (Rank(index, self._count, "127.0.0.1", self._port), *args)))
        return [_result(pipe) for pipe in self._pipes]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def _call(self, index: int, function: Callable[..., Any], *args: Any) -> Any:
        self._pipes[index].send((function, args))
        return _result(self._pipes[index])


def _result(pipe: Connection) -> Any:
    result, error = pipe.recv()
    assert not error, error
    return result


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((function(*args), ""))
        except Exception:
            pipe.send((None, traceback.format_exc()))
