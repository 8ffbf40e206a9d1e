"""The channel over several machines: each is a host of its own in this process, all else is as in a run."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from museg_ray.config.schema import Config
from museg_ray.errors import ResourceError, WeightsLostError
from museg_ray.fleet.errors import MemberLost
from museg_ray.weights import shared
from museg_ray.weights.channel import WritePlace
from museg_ray.weights.host import WeightHost
from museg_ray.weights.layout import Layout
from museg_ray.weights.shared import SharedWeights, _Machine
from museg_ray.weights.spans import Span
from museg_ray.weights.tensors import mapped, read_weights, tensor_layout
from tests.weights.weight_files import TensorSource

WEIGHTS = {"a": torch.randn(1000), "b": torch.randn(77).to(torch.bfloat16), "c": torch.randn(5, 5)}
LAYOUT = tensor_layout(WEIGHTS)
WHOLE = (len(LAYOUT.header), LAYOUT.size_bytes)
SIZE_BYTES = WHOLE[1] - WHOLE[0]


class LocalMachine(_Machine):
    """With its host in this process; `cluster` knows which are dead."""

    def __init__(self, node: str, config: Config) -> None:
        self._node, self._config, self._host = node, config.weights, None
        self._start()

    def _start(self) -> None:
        self.version, self.file, self._next_file = 0, Path(), Path()
        self._host, self.is_dead = WeightHost(), False
        CLUSTER.machines[self._node] = self
        CLUSTER.num_started += 1

    async def call(self, method: str, *args: Any) -> Any:
        if self.is_dead or self._node in CLUSTER.dead_nodes:
            raise MemberLost(f"{self._node} is dead")
        if (method, self._node) in CLUSTER.without_room:
            raise ResourceError("no room")
        result = await asyncio.to_thread(getattr(self._host, method), *args)
        if method == "fetch":
            CLUSTER.fetched[self._node] = CLUSTER.fetched.get(self._node, 0) + result
        return result

    def end(self) -> None:
        self._host.close()
        CLUSTER.machines.pop(self._node, None)


class Cluster:
    def __init__(self) -> None:
        self.machines: dict[str, LocalMachine] = {}
        self.fetched: dict[str, int] = {}
        self.dead_nodes: set[str] = set()
        self.without_room: set[tuple[str, str]] = set()
        self.num_started = 0


CLUSTER = Cluster()


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    global CLUSTER
    CLUSTER = Cluster()
    monkeypatch.setattr(shared, "_Machine", LocalMachine)
    return CLUSTER


class Ranks:
    """One on each of `of_ranks`. Sharded ones have a slice of each weight, else each has all."""

    def __init__(self, of_ranks: Sequence[str], sharded: bool = True) -> None:
        self._nodes, self._is_sharded = list(of_ranks), sharded
        self.weights = WEIGHTS

    async def weight_layout(self) -> Layout:
        return LAYOUT

    async def nodes(self) -> list[str]:
        return self._nodes

    async def write_weights(self, version: int, places: Sequence[WritePlace]) -> list[list[Span]]:
        whole = bytearray(LAYOUT.size_bytes)
        for name, weight in self.weights.items():
            begin, data = LAYOUT.offsets[name], weight.flatten().view(torch.uint8).numpy().tobytes()
            whole[begin : begin + len(data)] = data
        return [self._write(rank, place, whole) for rank, place in enumerate(places)]

    def _write(self, rank: int, place: WritePlace, whole: bytearray) -> list[Span]:
        index, count = (rank, len(self._nodes)) if self._is_sharded else (place.rank, place.num_ranks)
        spans = []
        for name, weight in self.weights.items():
            begin = LAYOUT.offsets[name]
            size_bytes = weight.numel() * weight.element_size()
            spans.append((begin + size_bytes * index // count, begin + size_bytes * (index + 1) // count))
        target = mapped(place.file)
        for start, end in spans:
            target[start:end] = torch.frombuffer(whole[start:end], dtype=torch.uint8) if end > start else 0
        return spans


def assert_has(file: Path, version: int) -> None:
    for name, weight in read_weights(file):
        assert torch.equal(weight, WEIGHTS[name]), name


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["m0", "m1", "m2"]), min_size=1, max_size=4),
    st.sets(st.sampled_from(["m0", "m1", "m2", "m3", "m4"]), min_size=1),
    st.booleans(),
)
def test_every_machine_has_the_whole_version_and_got_only_what_its_ranks_lack(
    of_ranks: list[str], of_engines: set[str], sharded: bool
) -> None:
    global CLUSTER
    CLUSTER = Cluster()

    async def run() -> None:
        channel = SharedWeights(Config(), Ranks(of_ranks, sharded))
        await channel.reserve(of_engines)
        assert CLUSTER.machines.keys() == {*of_ranks, *of_engines}
        published = await channel.publish(1, of_engines)
        for node in of_engines:
            assert_has(await published(node), 1)
        for node in CLUSTER.machines:
            share = of_ranks.count(node) / len(of_ranks) if sharded else float(node in of_ranks)
            assert CLUSTER.fetched.get(node, 0) == pytest.approx((1 - share) * SIZE_BYTES, abs=12)
        assert set(channel.phases_s) == {"prepare", "write", "transfer"}
        await channel.close()
        assert not CLUSTER.machines

    asyncio.run(run())


def test_a_machine_that_joins_gets_the_newest_version_once(cluster: Cluster) -> None:
    async def run() -> None:
        channel = SharedWeights(Config(), Ranks(["m0"]))
        old, newest = await channel.publish(1, ["m0"]), await channel.publish(2, ["m0"])
        files = await asyncio.gather(*(newest("m9") for _ in range(3)))
        assert len(set(files)) == 1
        assert_has(files[0], 2)
        assert cluster.fetched == {"m9": SIZE_BYTES}
        with pytest.raises(WeightsLostError, match="No machine has weights 1"):
            await old("m9")
        await channel.close()

    asyncio.run(run())


def test_a_machine_without_ranks_or_engines_is_let_go(cluster: Cluster) -> None:
    async def run() -> None:
        channel = SharedWeights(Config(), Ranks(["m0"]))
        await channel.publish(1, ["m0", "m1"])
        await channel.publish(2, ["m0"])
        assert cluster.machines.keys() == {"m0"}
        await channel.close()

    asyncio.run(run())


def test_a_process_that_is_gone_is_replaced_and_gets_the_weights_again(cluster: Cluster) -> None:
    async def run() -> None:
        channel = SharedWeights(Config(), Ranks(["m0"]))
        published = await channel.publish(1, ["m0", "m1"])
        for machine in cluster.machines.values():
            machine.is_dead = True
        published = await channel.publish(2, ["m0", "m1"])
        assert cluster.num_started == 4
        for node in ("m0", "m1"):
            assert_has(await published(node), 2)
        await channel.close()

    asyncio.run(run())


def test_a_machine_of_engines_that_is_lost_is_left_out_and_one_of_the_learner_is_told(cluster: Cluster) -> None:
    async def run() -> None:
        channel = SharedWeights(Config(), Ranks(["m0"]))
        cluster.dead_nodes = {"m1"}
        published = await channel.publish(1, ["m0", "m1"])
        assert_has(await published("m0"), 1)
        with pytest.raises(MemberLost, match="m1 is dead"):
            await published("m1")
        cluster.dead_nodes = {"m0"}
        with pytest.raises(WeightsLostError, match="machine of the learner's has lost its weights: m0 is dead"):
            await channel.publish(2, ["m0"])
        cluster.dead_nodes = set()
        assert_has(await (await channel.publish(3, ["m1"]))("m1"), 3)
        await channel.close()

    asyncio.run(run())


def test_a_machine_without_room_ends_the_start(cluster: Cluster) -> None:
    async def run() -> None:
        cluster.without_room = {("reserve", "m1")}
        with pytest.raises(ResourceError, match="no room"):
            await SharedWeights(Config(), Ranks(["m0"])).reserve(["m1"])

    asyncio.run(run())


def test_whole_tensors_are_a_source_of_one_rank(cluster: Cluster) -> None:
    async def run() -> None:
        channel = SharedWeights(Config(), TensorSource(WEIGHTS, "m0"))
        assert_has(await (await channel.publish(1, ["m0"]))("m0"), 1)
        await channel.close()

    asyncio.run(run())
