"""The life of a crew's members: who joins, who is lost, who leaves, and when the crew as a whole has failed."""

import asyncio
from collections.abc import Callable

import pytest

from museg_ray.clock import now_s
from museg_ray.errors import ModelError, ResourceError, RolloutError
from museg_ray.events import EventKind
from museg_ray.fleet.errors import MemberLost
from tests.fleet.staged import Stage, StagedWorker, simulated

DAY_S = 86_400.0


def failing(error: Exception, after_s: float = 0.0) -> Callable[[], "asyncio.Future[None]"]:
    async def fail() -> None:
        await asyncio.sleep(after_s)
        raise error

    return fail  # type: ignore[return-value]


def only_from(number: int, error: Exception, after_s: float = 1.0) -> Callable[[StagedWorker], None]:
    """A `set_up`: workers from this number on do not start."""

    def set_up(worker: StagedWorker) -> None:
        if int(worker.name.removeprefix("worker-")) >= number:
            worker.on_start = failing(error, after_s)

    return set_up


def test_a_mistake_of_the_users_ends_the_crew_with_that_error_and_no_restart() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2)
        stage.set_up = only_from(0, ModelError("no tokenizer in /model"))
        with pytest.raises(ModelError, match="no tokenizer"):
            await stage.pool.ready()
        assert len(stage.workers) == 2

    simulated(work())


def test_at_the_first_start_one_engine_that_fails_ends_the_run() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2)
        stage.set_up = only_from(1, RolloutError("no memory left"), after_s=30.0)
        with pytest.raises(RolloutError, match="no memory left"):
            await stage.pool.ready()

    simulated(work())


def test_a_start_that_fails_later_is_tried_again_as_long_as_others_serve() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2)
        await stage.pool.ready()
        stage.set_up = lambda worker: None if len(stage.workers) > 3 else only_from(2, RolloutError("busy"))(worker)
        stage.workers[0].die()
        await asyncio.sleep(60)
        assert stage.states() == ["serving"] * 2
        assert len(stage.texts(EventKind.LOSS)) == 3

    simulated(work())


def test_two_starts_that_fail_for_one_reason_while_nobody_serves_end_the_run_with_it() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        await stage.pool.ready()
        stage.set_up = only_from(1, RolloutError("No space left on device"))
        stage.workers[0].die()
        with pytest.raises(RolloutError, match="No space left"):
            await stage.sample(0)
        assert len(stage.workers) == 3

    simulated(work())


def test_losses_without_end_end_the_run_with_their_reasons() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1, max_restarts=8, restart_window_s=600.0)
        stage.set_up = only_from(0, MemberLost("killed by the kernel, out of memory"))
        with pytest.raises(ResourceError, match=r"9 rollout actors were lost .* out of memory"):
            async with asyncio.timeout(DAY_S):
                await stage.pool.ready()
        assert now_s() < 600.0

    simulated(work())


def test_the_first_restart_is_immediate_and_later_ones_wait_longer() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1, backoff_s=4.0)
        await stage.pool.ready()
        lives_s = []
        for number in range(4):
            begun_s = now_s()
            stage.workers[-1].die()
            while len(stage.workers) == number + 1 or stage.states() != ["serving"]:
                await asyncio.sleep(0.1)
            lives_s.append(now_s() - begun_s)
        assert lives_s[0] < 1.5 and [lived_s // 4 for lived_s in lives_s[1:]] == [1, 2, 4], lives_s

    simulated(work())


def test_an_error_of_ours_in_a_members_life_is_told_and_nobody_waits_for_ever() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        stage.set_up = only_from(0, KeyError("a bug"))
        with pytest.raises(KeyError, match="a bug"):
            async with asyncio.timeout(DAY_S):
                await stage.pool.ready()

    simulated(work())


def test_a_member_that_does_not_answer_is_replaced() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2, ping_timeout_s=30.0)
        await stage.pool.ready()

        async def hang() -> bool:
            await asyncio.sleep(DAY_S)
            return False

        stage.workers[0].ping = hang  # type: ignore[method-assign]
        await asyncio.sleep(40)
        assert "its answer to a ping took longer than 30 s" in stage.texts(EventKind.LOSS)[0]
        assert stage.states() == ["serving"] * 2

    simulated(work())


def test_one_to_three_to_one_drops_nothing_and_repeats_nothing() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1)
        await stage.pool.ready()
        groups = [stage.sample(number) for number in range(60)]
        await asyncio.sleep(3)
        stage.pool.resize(3)
        await asyncio.sleep(3)
        assert stage.states() == ["serving"] * 3
        stage.pool.resize(1)
        await asyncio.gather(*groups)
        seen = [issue.issue_id for worker in stage.workers for issue in worker.seen]
        assert sorted(seen) == list(range(60))
        assert len(stage.texts(EventKind.LEAVE)) == 2 and not stage.texts(EventKind.LOSS)

    simulated(work())


def test_throughput_follows_the_number_of_members() -> None:
    async def seconds(num_actors: int) -> float:
        stage = Stage(num_actors=num_actors, takes_s=1.0, room=2)
        await stage.pool.ready()
        begun_s = now_s()
        await asyncio.gather(*(stage.sample(number) for number in range(120)))
        return now_s() - begun_s

    async def work() -> None:
        one_s = await seconds(1)
        for count in (2, 3, 4):
            assert one_s / await seconds(count) == pytest.approx(count, rel=0.1)

    simulated(work())


def test_fewer_members_means_that_the_idle_ones_leave() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2, takes_s=100.0)
        await stage.pool.ready()
        group = stage.sample(0)
        await asyncio.sleep(1)
        stage.pool.resize(1)
        await asyncio.sleep(1)
        assert stage.states() == ["serving"]
        await group

    simulated(work())


def test_a_member_whose_machine_is_taken_away_finishes_what_it_has_and_another_comes() -> None:
    async def work() -> None:
        stage = Stage(num_actors=1, takes_s=20.0)
        await stage.pool.ready()
        group = stage.sample(0)
        await asyncio.sleep(1)
        stage.workers[0].is_leaving = True
        await asyncio.sleep(3)
        assert stage.states() == ["draining", "serving"]
        await group
        await asyncio.sleep(1)
        assert stage.states() == ["serving"] and not stage.texts(EventKind.LOSS)
        assert [worker.seen != [] for worker in stage.workers] == [True, False]

    simulated(work())


def test_closing_ends_what_is_being_sampled_and_whoever_dies_then_is_no_fault() -> None:
    async def work() -> None:
        stage = Stage(num_actors=2, takes_s=100.0)
        await stage.pool.ready()
        groups = [stage.sample(number) for number in range(6)]
        await asyncio.sleep(1)
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        loop.call_soon(stage.workers[0].die)
        await stage.pool.close()
        ends = await asyncio.gather(*groups, return_exceptions=True)
        assert all(isinstance(end, ResourceError) for end in ends) and not faults

    simulated(work())
