"""The channel that works everywhere: a file a machine that all ranks there fill and all engines there map.

prepare   each machine's next file is free
write     every rank writes the part that it holds, in parallel
transfer  each machine gets what its ranks did not have, once
          ─ the file serves ─
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from museg_ray.clock import now_s
from museg_ray.config.schema import Config
from museg_ray.errors import WeightsLostError
from museg_ray.fleet.deadlines import deadlines, within
from museg_ray.fleet.errors import MemberLost, result_of
from museg_ray.weights.channel import Weights, WeightSource, WritePlace
from museg_ray.weights.host import WeightHost
from museg_ray.weights.layout import Layout
from museg_ray.weights.spans import Span, common, merged, without
from museg_ray.weights.transfer import Address

Result = TypeVar("Result")
PHASES = ("prepare", "write", "transfer")


class HostActor(WeightHost):
    """A machine's files in a process of their own: they outlive every rank and every engine."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, ray.util.get_node_ip_address())


class _Machine:
    """The driver's hold on one machine's files."""

    def __init__(self, node: str, config: Config) -> None:
        self._deadlines, self._config = deadlines(config), config.weights
        self._place = NodeAffinitySchedulingStrategy(node, soft=False)
        self._start()

    def _start(self) -> None:
        self._actor = (
            ray.remote(HostActor).options(num_cpus=0, scheduling_strategy=self._place).remote(self._config.dir)
        )
        self.version = 0
        self.file = self._next_file = Path()

    async def call(self, method: str, *args: Any) -> Any:
        """
        Raises:
            MemberLost: its process is gone, or stuck.
            MusegError: as it was raised there.
        """
        answer = result_of(getattr(self._actor, method).remote(*args))
        return await within(self._deadlines[f"weights.{method}"], f"{method} of a machine's weights", answer)

    async def reserve(self, layout: Layout) -> None:
        """A process that is gone has another one in its place, without weights."""
        with suppress(MemberLost):
            return await self.call("reserve", layout)
        self.end()
        self._start()
        await self.call("reserve", layout)

    async def begin(self, version: int) -> Path:
        self._next_file = await self.call("begin", version, self._config.timeout_s)
        return self._next_file

    async def commit(self, version: int) -> None:
        await self.call("commit", version)
        self.version, self.file = version, self._next_file

    def end(self) -> None:
        ray.kill(self._actor)


class SharedWeights:
    """The newest version on every machine that has ranks or engines. Obeys `WeightChannel`."""

    def __init__(self, config: Config, source: WeightSource) -> None:
        self._config, self._source = config, source
        self._layout: Layout | None = None
        self._machines: dict[str, _Machine] = {}
        self._turn = asyncio.Lock()
        self.phases_s: Mapping[str, float] = {}

    async def reserve(self, nodes: Collection[str]) -> None:
        async with self._turn:
            await self._reserve(await self._source.nodes(), nodes)

    async def publish(self, version: int, nodes: Collection[str]) -> Weights:
        async with self._turn:
            times = [now_s()]
            of_ranks = await self._source.nodes()
            await self._reserve(of_ranks, nodes)
            files = await self._on_all(of_ranks, lambda machine: machine.begin(version))
            times.append(now_s())
            written = await self._source.write_weights(version, _places(of_ranks, files))
            times.append(now_s())
            await self._exchange(version, of_ranks, written)
            await self._on_all(of_ranks, lambda machine: machine.commit(version))
            times.append(now_s())
            self.phases_s = {phase: end - start for phase, (start, end) in zip(PHASES, pairwise(times), strict=True)}
            return partial(self._file, version)

    async def close(self) -> None:
        machines, self._machines = self._machines, {}
        for machine in machines.values():
            machine.end()

    async def _file(self, version: int, node: str) -> Path:
        """See `Weights`."""
        if not self._has(version, node):
            async with self._turn:
                if not self._has(version, node):
                    await self._join(version, node)
        return self._machines[node].file

    def _has(self, version: int, node: str) -> bool:
        return node in self._machines and self._machines[node].version == version

    async def _join(self, version: int, node: str) -> None:
        """A machine that was not there when the version was published, or whose process is gone since."""
        givers = [m for other, m in self._machines.items() if m.version == version and other != node]
        if not givers:
            raise WeightsLostError(f"No machine has weights {version} any more.")
        if node not in self._machines:
            self._machines[node] = _Machine(node, self._config)
        machine = self._machines[node]
        await machine.reserve(await self._agreed())
        await machine.begin(version)
        await machine.call("fetch", version, {await givers[0].call("address"): [self._whole]})
        await machine.commit(version)

    async def _reserve(self, of_ranks: Collection[str], of_engines: Collection[str]) -> None:
        """Room on these machines, and none on others."""
        wanted, layout = {*of_ranks, *of_engines}, await self._agreed()
        for node in self._machines.keys() - wanted:
            self._machines.pop(node).end()
        for node in wanted - self._machines.keys():
            self._machines[node] = _Machine(node, self._config)
        await self._on_all(of_ranks, lambda machine: machine.reserve(layout))

    async def _agreed(self) -> Layout:
        self._layout = self._layout or await self._source.weight_layout()
        return self._layout

    @property
    def _whole(self) -> Span:
        assert self._layout is not None
        return len(self._layout.header), self._layout.size_bytes

    async def _on_all(
        self, of_ranks: Collection[str], call: Callable[[_Machine], Coroutine[Any, Any, Result]]
    ) -> dict[str, Result]:
        """What the call gives on each machine. One with engines alone that is lost is left out: they find no weights
        there, and are replaced.

        Raises:
            WeightsLostError: a machine of the learner's is lost.
            ResourceError: a machine has no room.
        """
        machines = dict(self._machines)
        answers = await asyncio.gather(*map(call, machines.values()), return_exceptions=True)
        given = dict[str, Result]()
        for node, answer in zip(machines, answers, strict=True):
            if not isinstance(answer, BaseException):
                given[node] = answer
            elif node in of_ranks and isinstance(answer, MemberLost):
                raise WeightsLostError(f"A machine of the learner's has lost its weights: {answer}") from None
            elif node in of_ranks or not isinstance(answer, MemberLost | WeightsLostError):
                raise answer
            else:
                self._machines.pop(node).end()
        return given

    async def _exchange(self, version: int, of_ranks: Sequence[str], written: Sequence[Sequence[Span]]) -> None:
        """Each machine gets what its ranks have not written from those whose ranks have: each byte once."""
        has = {node: list[Span]() for node in of_ranks}
        for node, spans in zip(of_ranks, written, strict=True):
            has[node] = merged([*has[node], *spans])
        if all(has.get(node) == [self._whole] for node in self._machines):
            return
        addresses = {node: await self._machines[node].call("address") for node in has}
        wanted = {
            machine: _sources([self._whole], has.get(node, []), has, addresses)
            for node, machine in self._machines.items()
        }
        await self._on_all(of_ranks, lambda machine: machine.call("fetch", version, wanted[machine]))


def _sources(
    wanted: Sequence[Span], there: Sequence[Span], has: Mapping[str, Sequence[Span]], addresses: Mapping[str, Address]
) -> dict[Address, list[Span]]:
    """Who gives which bytes to a machine that has those of `there`."""
    missing, result = without(wanted, there), dict[Address, list[Span]]()
    for node, spans in has.items():
        if given := common(missing, spans):
            result[addresses[node]], missing = given, without(missing, given)
    assert not missing, f"no rank has written the bytes {missing[0]}"
    return result


def _places(of_ranks: Sequence[str], files: Mapping[str, Path]) -> list[WritePlace]:
    """Of each rank: the file of its machine, and which of the ranks there it is."""
    return [
        WritePlace(files[node], of_ranks[:rank].count(node), of_ranks.count(node)) for rank, node in enumerate(of_ranks)
    ]
