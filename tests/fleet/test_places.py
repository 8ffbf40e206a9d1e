"""The least crew of a run has room as one, each role where it belongs; who waits says for what."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from museg_ray.config.learning import LearnerConfig
from museg_ray.config.schema import Config, FleetConfig, RewardConfig, RolloutConfig, VideoConfig
from museg_ray.errors import ResourceError
from museg_ray.events import EventKind
from museg_ray.fleet import places as places_module
from museg_ray.fleet.places import Places

CPUS = 3.0
"""Of the four that the cluster has."""


class Run:
    """The places of one run, and what was said."""

    def __init__(self, timeout_s: float = 60.0) -> None:
        config = Config(
            rollout=RolloutConfig(num_cpus=1.0),
            rewards=RewardConfig(num_cpus=0.5),
            video=VideoConfig(num_cpus=0.5),
            learner=LearnerConfig(num_cpus=0.5, num_ranks=2),
            fleet=FleetConfig(place_timeout_s=timeout_s),
        )
        self.said: list[str] = []
        self.places = Places(config, self._note)

    def _note(self, kind: EventKind, text: str, **_: object) -> None:
        assert kind is EventKind.WAIT
        self.said.append(text)

    def end(self) -> None:
        remove_placement_group(self.places.group)


@pytest.fixture(autouse=True)
def often(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(places_module, "SAY_EVERY_S", 0.4)
    monkeypatch.setattr(places_module, "POLL_S", 0.1)
    yield
    for _ in range(100):
        if ray.available_resources().get("CPU") == 4.0:
            return
        asyncio.run(asyncio.sleep(0.1))
    pytest.fail("a place was not given back")


def test_invariant_of_two_runs_that_start_together_one_begins_and_the_other_holds_nothing() -> None:
    async def trial() -> None:
        runs = [Run(), Run()]
        tasks = [asyncio.create_task(run.places.reserve()) for run in runs]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(1.0)
        assert len(done) == 1 and not any(task.done() for task in waiting)
        first, second = (runs[0], runs[1]) if tasks[0].done() else (runs[1], runs[0])
        assert ray.available_resources()["CPU"] == 4.0 - CPUS, "who waits holds nothing"
        assert not first.said
        assert "the run waits for room since " in second.said[0]
        assert "needs 3 CPU at once; the cluster has 4 CPU, of which 1 CPU are free" in second.said[0]
        first.end()
        await asyncio.wait_for(asyncio.gather(*waiting), 30)
        second.end()

    asyncio.run(trial())


def test_a_run_that_finds_no_room_ends_with_the_arithmetic() -> None:
    async def trial() -> None:
        first, second = Run(), Run(timeout_s=0.5)
        await first.places.reserve()
        with pytest.raises(ResourceError, match=r"needs 3 CPU at once; .* 1 CPU are free.*fleet.place_timeout_s"):
            await second.places.reserve()
        first.end()
        second.end()

    asyncio.run(trial())


def test_a_member_that_is_lost_leaves_its_place_of_the_least_crew_to_the_next() -> None:
    async def trial() -> None:
        run = Run()
        await run.places.reserve()
        first, second = run.places.take("rollout"), run.places.take("rollout")
        await first.ready()
        await second.ready()
        assert first.is_least and not second.is_least
        assert run.places.free().get("CPU", 0.0) == 2.0, "the run keeps room for its reward, clip and learner actors"
        first.leave()
        first.leave()
        again, another = run.places.take("rollout"), run.places.take("rollout")
        await again.ready()
        assert again.is_least
        with pytest.raises(ResourceError, match="a rollout actor waits for room"):
            await another.ready(0.5)
        for place in (second, another):
            place.leave()
        run.end()

    asyncio.run(trial())


def test_whoever_waits_elsewhere_comes_into_the_least_crews_place_when_that_is_free() -> None:
    async def trial() -> None:
        run = Run()
        await run.places.reserve()
        draining, full, replacement = (run.places.take("rollout") for _ in range(3))
        await draining.ready()
        await full.ready()
        waiting = asyncio.create_task(replacement.ready())
        await asyncio.sleep(1.0)
        assert not waiting.done() and "a rollout actor waits for room" in run.said[-1]
        draining.leave()
        await asyncio.wait_for(waiting, 10)
        assert replacement.is_least
        full.leave()
        run.end()

    asyncio.run(trial())


def test_all_ranks_of_the_learner_have_one_place() -> None:
    async def trial() -> None:
        run = Run()
        await run.places.reserve()
        place = run.places.take("learner")
        await place.ready()
        strategies = [place.strategy(index) for index in range(2)]
        assert [each.placement_group_bundle_index for each in strategies] == [0, 0]  # type: ignore[union-attr]
        assert run.places.group.bundle_specs[0] == {"CPU": 1.0}, "a bundle is on one machine"
        run.end()

    asyncio.run(trial())


def test_ranks_that_no_machine_can_hold_together_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    machines = [{"Alive": True, "Resources": {"CPU": 0.9}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    assert run.places.bundles("learner") == [{"CPU": 0.5}] * 2

    async def trial() -> None:
        await run.places.reserve()
        place = run.places.take("learner")
        await place.ready()
        strategies = [place.strategy(index) for index in range(2)]
        assert [each.placement_group_bundle_index for each in strategies] == [0, 1]  # type: ignore[union-attr]
        run.end()

    asyncio.run(trial())


ON_MACHINES = """
import asyncio, json, ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table
from tests.fleet.test_places import Run

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
cluster.add_node(num_cpus=4, resources={"rollout": 1})
cluster.add_node(num_cpus=1, resources={"learner": 1})
cluster.connect()
machines = {node["NodeID"]: next((r for r in ("rollout", "learner") if r in node["Resources"]), "head")
            for node in ray.nodes()}

async def trial():
    run = Run()
    await run.places.reserve()
    table = placement_group_table(run.places.group)
    print(json.dumps({role: sorted({machines[table["bundles_to_node_id"][index]] for index in indices})
                      for role, indices in run.places.least.items()}))

asyncio.run(trial())
ray.shutdown()
cluster.shutdown()
"""


def test_each_role_is_on_machines_that_offer_its_resource() -> None:
    """In a process of its own, with a Ray of three nodes. Packed by size alone, all would lie on the largest."""
    done = subprocess.run(
        [sys.executable, "-c", ON_MACHINES], capture_output=True, text=True, timeout=120, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    machines = json.loads(done.stdout.splitlines()[-1])
    assert (machines["learner"], machines["rollout"]) == (["learner"], ["rollout"])


def test_another_roles_lost_machine_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def trial() -> None:
        run = Run()
        await run.places.reserve()
        real, (of_rollout,) = places_module.placement_group_table, run.places.least["rollout"]

        def without_rollouts_machine(group: PlacementGroup) -> dict[str, Any]:
            table = real(group)
            nodes = table["bundles_to_node_id"] | {of_rollout: ""}
            return table | {"state": "RESCHEDULING", "bundles_to_node_id": nodes}

        monkeypatch.setattr(places_module, "placement_group_table", without_rollouts_machine)
        await run.places.take("learner").ready(1.0)
        with pytest.raises(ResourceError, match="a rollout actor waits for room"):
            await run.places.take("rollout").ready(0.5)
        run.end()

    asyncio.run(trial())


def test_waiting_asks_the_cluster_now_and_then_and_says_so_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    async def trial() -> None:
        run = Run()
        await run.places.reserve()
        num_asked, real = 0, places_module.placement_group_table

        def counted(group: PlacementGroup) -> dict[str, Any]:
            nonlocal num_asked
            num_asked += 1
            return dict(real(group))

        monkeypatch.setattr(places_module, "placement_group_table", counted)
        places = [run.places.take("rollout") for _ in range(4)]
        waiting = [asyncio.create_task(place.ready()) for place in places]
        await asyncio.sleep(2.0)
        assert num_asked <= 4 * 21, "twenty looks in two seconds at this pace"
        said = [text for text in run.said if "rollout actor" in text]
        assert 1 <= len(said) <= 3, "at 0.4 and 1.2 s, for all together"
        for task in waiting:
            task.cancel()
        for place in places:
            place.leave()
        run.end()

    asyncio.run(trial())
