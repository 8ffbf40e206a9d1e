"""What becomes of issues and weights when rollout actors die, join and disagree."""

import asyncio
from typing import Any

import pytest

from museg_ray.clock import now_s
from museg_ray.errors import PoisonQueryError, RolloutError, VideoError, WeightsLostError, WeightSyncError
from museg_ray.events import EventKind
from museg_ray.rollout.engine import Sampling
from museg_ray.types import Issue
from tests.fleet.staged import Stage, StagedWorker, an_issue, simulated


def test_an_issue_of_a_lost_member_is_sampled_elsewhere_under_its_id_and_seed() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2, takes_s=10.0)
        await stage.pool.ready()
        await stage.pool.publish(5, "weights")
        groups = [stage.sample(number) for number in range(4)]
        await asyncio.sleep(1)
        inside = list(stage.workers[0].seen)
        stage.workers[0].die()
        found = await asyncio.gather(*groups)
        assert [group.issue for group in found] == [an_issue(number) for number in range(4)]
        again = [issue for worker in stage.workers[1:] for issue in worker.seen]
        assert inside and all(issue in again for issue in inside)
        assert stage.workers[2].version == 5, "the replacement has the newest weights"
        assert len(stage.texts(EventKind.REQUEUE)) == len(inside)

    simulated(work())


def test_a_query_that_kills_engines_ends_alone_and_takes_no_other_with_it() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2)

        def set_up(worker: StagedWorker) -> None:
            async def die_of_three(issue: Issue, _: Sampling) -> None:
                if issue.issue_id == 3:
                    worker.die()

            worker.on_generate = die_of_three

        stage.set_up = set_up
        await stage.pool.ready()
        ends = await asyncio.gather(*(stage.sample(number) for number in range(8)), return_exceptions=True)
        failed = [number for number, end in enumerate(ends) if isinstance(end, BaseException)]
        assert failed == [3] and isinstance(ends[3], PoisonQueryError)
        assert "q/3 about /v/3.mp4" in str(ends[3])

    simulated(work())


def test_others_are_served_while_a_suspect_waits_for_a_member_of_its_own() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2, room=2)
        await stage.pool.ready()
        crew = stage.pool._crew

        async def job(order: int, seconds: float, alone: bool = False) -> float:
            async with crew.lease(order, 2, alone):
                begun_s = now_s()
                await asyncio.sleep(seconds)
                return begun_s

        busy = [asyncio.create_task(job(10, 1000.0)), asyncio.create_task(job(11, 1.0))]
        await asyncio.sleep(0.5)
        alone = asyncio.create_task(job(0, 1.0, alone=True))
        later = await asyncio.gather(*(job(20 + number, 1.0) for number in range(5)))
        assert max(later) < 100.0
        await asyncio.gather(alone, *busy)

    simulated(work())


def test_a_request_that_waits_in_the_queue_is_not_late() -> None:
    """Of thousands of held-out questions most wait for longer than one may take."""

    async def work() -> None:
        stage = Stage(num_actors=1, takes_s=10.0, room=2, timeout_s=15.0)
        await stage.pool.ready()
        groups = await asyncio.gather(*(stage.sample(number) for number in range(50)))
        assert len(groups) == 50 and not stage.texts(EventKind.LOSS)

    simulated(work())


def test_a_member_that_is_stuck_over_a_group_is_replaced_and_the_group_sampled_elsewhere() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2, timeout_s=15.0)
        await stage.pool.ready()

        async def hang(*_: Any) -> None:
            await asyncio.sleep(1e6)

        stage.workers[0].on_generate = hang
        await asyncio.gather(*(stage.sample(number) for number in range(4)))
        assert "sampling issue 0 took longer than 15 s" in stage.texts(EventKind.LOSS)[0]

    simulated(work())


def test_a_push_meets_one_that_joins() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        await stage.pool.ready()
        await stage.pool.publish(1, "a")
        await stage.sample(0)
        stage.pool.resize(2)
        await asyncio.sleep(0.05)
        await stage.pool.publish(2, "b")
        await asyncio.sleep(20)
        assert [worker.version for worker in stage.workers] == [2, 2] and stage.states() == ["serving"] * 2

    simulated(work())


def test_the_machine_of_one_that_loads_weights_before_it_serves_keeps_them() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        stage.set_up = lambda worker: setattr(worker, "node", f"machine of {worker.name}")
        await stage.pool.ready()
        await stage.pool.publish(1, "a")
        stage.pool.resize(2)
        await asyncio.sleep(0.05)
        assert stage.states() == ["serving", "starting"]
        assert stage.pool.nodes == {f"machine of {worker.name}" for worker in stage.workers}
        stage.workers[1].node = ""  # it has no process yet
        assert len(stage.pool.nodes) == 1

    simulated(work())


def test_who_fails_a_push_that_others_load_gets_nothing_new_and_is_replaced() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2)
        await stage.pool.ready()

        async def refuse(_: int) -> None:
            raise WeightSyncError("half loaded")

        async def slowly(_: int) -> None:
            await asyncio.sleep(50)

        first, second = stage.workers
        first.on_update, second.on_update = refuse, slowly
        push = asyncio.create_task(stage.pool.publish(1, "weights"))
        await asyncio.sleep(1)
        before = len(first.seen)
        await stage.sample(0)
        assert len(first.seen) == before
        await push
        await asyncio.sleep(20)
        assert [worker.version for worker in stage.workers[1:]] == [1, 1]
        assert stage.states() == ["serving"] * 2

    simulated(work())


def test_weights_that_are_lost_before_anyone_has_them_are_told_and_nobody_is_replaced() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2)
        await stage.pool.ready()

        async def gone(_: int) -> None:
            raise WeightsLostError("weights 1 are gone")

        for worker in stage.workers:
            worker.on_update = gone
        with pytest.raises(WeightsLostError):
            await stage.pool.publish(1, "weights")
        for worker in stage.workers:
            worker.on_update = StagedWorker("", 0.0).on_update
        await stage.pool.publish(2, "others")
        await stage.sample(0)
        assert not stage.texts(EventKind.LOSS)

    simulated(work())


def test_a_joiner_that_computes_something_else_never_serves() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        await stage.pool.ready()
        await stage.sample(0)
        stage.set_up = lambda worker: setattr(worker, "logprob", -9.0)
        stage.pool.resize(2)
        await asyncio.sleep(5)
        assert "differ from rollout-0's by 9.00e+00 nats" in stage.texts(EventKind.LOSS)[0]
        assert [member for member in stage.pool._crew.serving] == stage.pool._crew.members[:1]

    simulated(work())


def test_a_joiner_is_compared_also_when_it_comes_in_the_middle_of_a_slow_push() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        await stage.pool.ready()
        await stage.pool.publish(1, "a")
        await stage.sample(0)

        async def slowly(_: int) -> None:
            await asyncio.sleep(60)

        stage.workers[0].on_update = slowly
        push = asyncio.create_task(stage.pool.publish(2, "b"))
        await asyncio.sleep(1)
        stage.pool.resize(2)
        await push
        await asyncio.sleep(10)
        assert "log-probs 0.0e+00 from rollout-0's" in stage.texts(EventKind.JOIN)[-1]

    simulated(work())


@pytest.mark.parametrize("who", ["joiner", "peer"])
def test_a_clip_or_a_peer_that_cannot_be_asked_is_not_held_against_a_joiner(who: str) -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        await stage.pool.ready()
        await stage.sample(0)

        async def refuse(_: Issue, sampling: Sampling) -> None:
            if not sampling.temperature:
                raise VideoError("left the store") if who == "joiner" else RolloutError("vLLM refused it")

        if who == "peer":
            stage.workers[0].on_generate = refuse
        else:
            stage.set_up = lambda worker: setattr(worker, "on_generate", refuse)
        stage.pool.resize(2)
        await asyncio.sleep(20)
        assert stage.states() == ["serving"] * 2
        assert stage.texts(EventKind.JOIN)[-1].endswith("compared with nobody")

    simulated(work())


def test_a_joiner_that_hangs_while_it_loads_weights_is_given_up() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2, timeout_s=50.0)
        await stage.pool.ready()
        await stage.pool.publish(1, "weights")

        async def hang(_: int) -> None:
            await asyncio.sleep(1e6)

        def set_up(worker: StagedWorker) -> None:
            if len(stage.workers) == 2:
                worker.on_update = hang

        stage.set_up = set_up
        stage.workers[0].die()
        await asyncio.sleep(200)
        assert stage.states() == ["serving"] * 2

    simulated(work())


@pytest.mark.parametrize("num_turns", range(6))
def test_no_member_leaves_in_the_middle_of_a_push(num_turns: int) -> None:
    """Also not one whose last job ends in the turn of the event loop in which the push begins."""

    async def work() -> None:
        stage = Stage(num_actors=2, takes_s=0.0)
        await stage.pool.ready()
        gate = asyncio.Event()

        async def wait(*_: Any) -> None:
            await gate.wait()

        for worker in stage.workers:
            worker.on_generate = wait
        group = stage.sample(0)
        await asyncio.sleep(0.05)
        (busy,) = [member for member in stage.pool._crew.members if member.num_jobs]
        stage.pool.resize(1)
        stage.pool.resize(2)
        stage.pool._crew.drain(busy, "its machine is about to be taken away")
        await asyncio.sleep(1)
        gate.set()
        for _ in range(num_turns):
            await asyncio.sleep(0)
        await stage.pool.publish(1, "weights")
        await group
        await asyncio.sleep(1)
        assert set(stage.states()) == {"serving"} and not stage.texts(EventKind.LOSS)
        assert all(member.worker.version == 1 for member in stage.pool._crew.members)  # type: ignore[attr-defined]

    simulated(work())


def test_a_query_is_not_to_blame_for_an_engine_that_cannot_load_weights() -> None:
    async def work() -> None:
        stage = Stage(num_actors=3, max_restarts=20, backoff_s=0.01)
        await stage.pool.ready()
        deaths = 0

        def set_up(worker: StagedWorker) -> None:
            async def die_twice(issue: Issue, _: Sampling) -> None:
                nonlocal deaths
                if deaths < 2:
                    deaths += 1
                    await asyncio.sleep(0.1)
                    worker.die()

            worker.on_generate = die_twice

        stage.set_up = set_up
        for worker in stage.workers:
            set_up(worker)

        async def refuse(_: int) -> None:
            await asyncio.sleep(0.3)
            raise WeightSyncError("cannot load")

        stage.workers[2].on_update = refuse
        groups = [stage.sample(number) for number in (0, 1, 2)]
        while deaths < 2:
            await asyncio.sleep(0.001)
        await stage.pool.publish(1, "weights")
        assert [group.issue.issue_id for group in await asyncio.gather(*groups)] == [0, 1, 2]

    simulated(work())


def test_a_peer_that_leaves_while_a_joiner_is_compared_with_it_fails_nobody() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2)
        await stage.pool.ready()
        await stage.sample(0)
        stage.pool.resize(3)
        await asyncio.sleep(0.5)  # the joiner asks the first one what it says
        first = stage.pool._crew.members[0]
        stage.pool._crew.drain(first, "its machine is about to be taken away")
        await asyncio.sleep(5)
        assert stage.states() == ["serving"] * 3 and not stage.texts(EventKind.LOSS)

    simulated(work())


def test_a_joiner_does_not_wait_for_ever_for_weights_that_nobody_publishes() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1, max_restarts=1)
        await stage.pool.ready()
        await stage.pool.publish(1, "weights")

        def set_up(worker: StagedWorker) -> None:
            async def lost(_: int) -> None:
                raise WeightsLostError("weights 1 are gone with the process that held them")

            worker.on_update = lost

        stage.set_up = set_up
        stage.workers[0].die()
        with pytest.raises(WeightsLostError, match="gone with the process"):
            await stage.sample(0)

    simulated(work())
