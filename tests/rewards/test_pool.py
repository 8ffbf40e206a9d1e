import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
import ray

from museg_ray.config.schema import Config, FleetConfig, RewardConfig, RewardWeights
from museg_ray.errors import ResourceError, RewardError
from museg_ray.events import EventKind, EventSink, no_events
from museg_ray.fleet.deadlines import Deadline
from museg_ray.fleet.places import Place
from museg_ray.rewards.actor import RewardWorker
from museg_ray.rewards.pool import CALLS_PER_ACTOR, RewardPool
from museg_ray.rewards.recipe import Recipe
from museg_ray.types import GroundingQuery, Group, Issue, Response, RewardParts, Unscored

pytestmark = pytest.mark.usefixtures("ray_local")

Result = TypeVar("Result")
WEIGHTS = RewardWeights(matching=1.0, timestamp=1.0, format=1.0)
CUSTOM = RewardWeights(custom=1.0)
QUERY = GroundingQuery("train/0", "video.mp4", "the red circle is visible", segments=((1.0, 2.0),))
HOSTILE = {"custom": "tests.rewards.hostile_reward.reward", "response_timeout_s": 0.5}
TEXTS = [
    "<think>1 to 2</think><answer>1.00-2.00</answer>",
    "<think></think><answer>1.50-3.00</answer>",
    "nothing",
]


def group_of(texts: Sequence[str], query: GroundingQuery = QUERY) -> Group:
    responses = tuple(Response((1,), np.zeros(1, dtype=np.float32), text, finished=True) for text in texts)
    return Group(Issue(0, query, "only", 0), "clip", 12.0, prompt_ids=(0,), responses=responses, weight_version=0)


def doing(*deeds: str) -> Group:
    return group_of([f"<think>{deed}</think><answer>1-2</answer>" for deed in deeds])


class Recruits:
    """Makes a pool's workers, as the pool would, and keeps hold of them all."""

    def __init__(self) -> None:
        self.made: list[RewardWorker] = []
        self.num_for_suspects = 0

    def make(self, config: RewardConfig, num_cpus: float, place: Place) -> RewardWorker:
        self.made.append(RewardWorker(config, num_cpus, place))
        self.num_for_suspects += num_cpus == 0
        return self.made[-1]


def in_pool(
    use: Callable[[RewardPool], Awaitable[Result]],
    events: EventSink = no_events,
    make: Callable[[RewardConfig, float, Place], RewardWorker] | None = None,
    max_restarts: int = FleetConfig.max_restarts,
    **settings: Any,
) -> Result:
    """What `use` returns of a pool of one actor, or of `num_actors`."""

    async def run() -> Result:
        config = Config(
            rewards=RewardConfig(**{"num_cpus": 0.1} | settings), fleet=FleetConfig(max_restarts=max_restarts)
        )
        pool = RewardPool(config, events, make and partial(make, config.rewards))
        try:
            await pool.ready()
            return await use(pool)
        finally:
            await pool.close()

    return asyncio.run(run())


def process_ids(pool: RewardPool) -> list[int]:
    return ray.get([member.worker._actor.__ray_call__.remote(lambda _: os.getpid()) for member in pool._crew.members])


def is_scored(outcomes: Sequence[RewardParts | Unscored]) -> list[bool]:
    return [isinstance(outcome, RewardParts) for outcome in outcomes]


def test_a_group_gets_the_rewards_of_its_responses_in_order() -> None:
    rewards = in_pool(lambda pool: pool.score(group_of(TEXTS), WEIGHTS))
    assert rewards == tuple(Recipe(RewardConfig()).score(text, QUERY, WEIGHTS) for text in TEXTS)
    assert rewards[0].total == 3.0


def test_groups_that_come_together_travel_together_and_each_gets_its_own() -> None:
    async def score_many(pool: RewardPool) -> list[tuple[RewardParts | Unscored, ...]]:
        tasks = [asyncio.create_task(pool.score(group_of(TEXTS[i % 3 :]), WEIGHTS)) for i in range(100)]
        await asyncio.sleep(0)
        assert pool.num_waiting == 100
        await asyncio.sleep(0)
        assert pool.num_waiting == 0
        assert all(0 < member.num_jobs <= CALLS_PER_ACTOR for member in pool.status().members)
        return await asyncio.gather(*tasks)

    expected = [Recipe(RewardConfig()).score(text, QUERY, WEIGHTS) for text in TEXTS]
    for index, rewards in enumerate(in_pool(score_many, num_actors=2)):
        assert rewards == tuple(expected[index % 3 :])


def test_groups_wait_for_an_actor_and_are_counted() -> None:
    async def score_one_by_one(pool: RewardPool) -> None:
        tasks = []
        for _ in range(CALLS_PER_ACTOR + 3):  # so many calls at the actor, each of one group; the others wait
            tasks.append(asyncio.create_task(pool.score(doing("slow"), CUSTOM)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert pool.num_waiting == 3
        num_queued = pool.status().num_queued
        await asyncio.gather(*tasks)
        assert pool.num_waiting == 0
        assert num_queued == 3

    in_pool(score_one_by_one, **HOSTILE)


def test_a_dead_actor_is_replaced_and_its_groups_are_scored_all_the_same() -> None:
    async def kill_and_score(pool: RewardPool) -> None:
        (dead,) = process_ids(pool)
        os.kill(dead, signal.SIGKILL)
        groups = await asyncio.gather(*(pool.score(group_of(TEXTS), WEIGHTS) for _ in range(3)))
        for rewards in groups:
            assert is_scored(rewards) == [True, True, True] and rewards[0].total == 3.0
        await pool.score(group_of(TEXTS), WEIGHTS)
        (alive,) = process_ids(pool)
        assert alive != dead
        assert pool.status().num_losses == 1

    kinds: list[EventKind] = []
    in_pool(kill_and_score, lambda kind, text, **fields: kinds.append(kind))
    assert [kind for kind in kinds if kind is not EventKind.SCALE] == [EventKind.JOIN, EventKind.LOSS, EventKind.JOIN]


def test_a_process_that_does_nothing_at_all_is_replaced_and_its_group_scored_elsewhere() -> None:
    async def freeze_and_score(pool: RewardPool) -> None:
        (frozen,) = process_ids(pool)
        os.kill(frozen, signal.SIGSTOP)
        try:
            rewards = await pool.score(group_of(TEXTS), WEIGHTS)
        finally:
            with suppress(ProcessLookupError):  # it was killed, and may be gone already
                os.kill(frozen, signal.SIGCONT)
        assert is_scored(rewards) == [True, True, True]
        assert process_ids(pool) != [frozen]

    in_pool(freeze_and_score, response_timeout_s=0.5)


@pytest.mark.parametrize("deed", ["die", "sleep", "hold the interpreter", "raise", "nan"])
def test_a_response_that_fails_twice_is_quarantined_and_takes_no_other_with_it(deed: str) -> None:
    async def score(pool: RewardPool) -> tuple[tuple[RewardParts | Unscored, ...], ...]:
        groups = [doing("fine", deed, "fine"), doing("fine", "fine")]
        return tuple(await asyncio.gather(*(pool.score(group, CUSTOM) for group in groups)))

    poisoned, clean = in_pool(score, **HOSTILE)
    assert is_scored(poisoned) == [True, False, True]
    assert is_scored(clean) == [True, True]
    outcome = poisoned[1]
    assert isinstance(outcome, Unscored)
    assert outcome.text == f"<think>{deed}</think><answer>1-2</answer>"
    assert len(outcome.reasons) == 2 and all(outcome.reasons)


def test_responses_that_a_call_did_not_get_to_are_scored_by_the_next() -> None:
    """Each takes 0.3 s, under its limit of 0.5 s; all of them in one call would take 3 s."""
    groups = [doing(*["slow"] * 3), doing(*["slow"] * 7)]

    async def score(pool: RewardPool) -> list[tuple[RewardParts | Unscored, ...]]:
        return await asyncio.gather(*(pool.score(group, CUSTOM) for group in groups))

    assert [is_scored(outcomes) for outcomes in in_pool(score, **HOSTILE)] == [[True] * 3, [True] * 7]


def test_a_caller_that_is_cancelled_during_the_second_try_harms_no_other() -> None:
    async def cancel_one(pool: RewardPool) -> tuple[RewardParts | Unscored, ...]:
        poisoned = asyncio.create_task(pool.score(doing("die", "fine"), CUSTOM))
        while not recruits.num_for_suspects:
            await asyncio.sleep(0.01)
        poisoned.cancel()
        outcomes = await pool.score(doing("fine", "raise"), CUSTOM)
        assert poisoned.cancelled()
        return outcomes

    recruits = Recruits()
    good, bad = in_pool(cancel_one, make=recruits.make, **HOSTILE)
    assert isinstance(good, RewardParts)
    assert isinstance(bad, Unscored) and bad.reasons == ("ValueError: no such thing",) * 2


def test_an_actor_that_does_not_start_takes_no_groups() -> None:
    def too_large_from_the_second_on(config: RewardConfig, num_cpus: float, place: Place) -> RewardWorker:
        return recruits.make(config, 1000 if recruits.made else num_cpus, place)

    async def grow_beyond_the_cluster(pool: RewardPool) -> None:
        pool.resize(3)
        groups = await asyncio.gather(*(pool.score(group_of(TEXTS), WEIGHTS) for _ in range(20)))
        assert all(all(is_scored(rewards)) for rewards in groups)
        assert [member.state for member in pool.status().members] == ["serving", "starting", "starting"]

    recruits = Recruits()
    in_pool(grow_beyond_the_cluster, make=too_large_from_the_second_on)


def test_a_suspect_whose_process_finds_no_place_ends_the_run_and_is_no_quarantine() -> None:
    async def score(pool: RewardPool) -> None:
        pool._crew.deadlines["start"] = Deadline(0.5)
        await pool.score(doing("raise"), CUSTOM)

    with pytest.raises(RewardError, match="found no place"):
        in_pool(score, make=lambda config, cpus, place: RewardWorker(config, cpus or 1000, place), **HOSTILE)


def test_a_fault_of_ours_ends_the_run_and_is_no_quarantine() -> None:
    """A truth that no query should have: scoring it is a bug elsewhere, not a property of the responses."""
    ill_formed = group_of(TEXTS, replace(QUERY, segments=((38.0, 13.0),)))
    with pytest.raises(RewardError, match=r"fault of museg_ray(.|\n)*ill-formed"):
        in_pool(lambda pool: pool.score(ill_formed, WEIGHTS))


def test_a_group_that_waits_while_the_pool_closes_fails_at_once() -> None:
    async def close_with_work(pool: RewardPool) -> None:
        tasks = [asyncio.create_task(pool.score(doing("slow", "slow"), CUSTOM)) for _ in range(10)]
        await asyncio.sleep(0.1)
        await pool.close()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=10)
        assert all(isinstance(result, RewardError) and "closed" in str(result) for result in results)

    in_pool(close_with_work, **HOSTILE)


def test_a_failure_is_never_a_score() -> None:
    """Every response of the group fails: none of them has a reward, not even 0."""
    outcomes = in_pool(lambda pool: pool.score(doing("raise", "die", "sleep"), CUSTOM), **HOSTILE)
    assert is_scored(outcomes) == [False, False, False]


def test_the_pool_grows_and_shrinks_while_it_scores() -> None:
    async def resize(pool: RewardPool) -> None:
        first = process_ids(pool)
        scoring = [asyncio.create_task(pool.score(group_of(TEXTS), WEIGHTS)) for _ in range(20)]
        pool.resize(3)
        assert pool.status().num_wanted == 3
        assert all(all(is_scored(rewards)) for rewards in await asyncio.gather(*scoring))
        grown = process_ids(pool)
        assert len(set(grown)) == 3 and set(first) <= set(grown)
        scoring = [asyncio.create_task(pool.score(group_of(TEXTS), WEIGHTS)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pool.resize(1)
        assert pool.status().num_wanted == 1
        assert all(all(is_scored(rewards)) for rewards in await asyncio.gather(*scoring))
        assert len(pool.status().members) == 1

    in_pool(resize)


def test_a_reward_that_the_actors_cannot_import_ends_the_run_with_its_name() -> None:
    with pytest.raises(RewardError, match=r"did not start.*no_such_module"):
        in_pool(lambda pool: pool.score(group_of(TEXTS), WEIGHTS), custom="no_such_module.reward")


def test_only_deaths_that_no_response_can_be_blamed_for_count_against_the_restarts() -> None:
    """One loss is one too many here. A response that ends its actor is quarantined, and the run goes on."""

    async def lose_two(pool: RewardPool) -> None:
        assert is_scored(await pool.score(doing("fine", "die"), CUSTOM)) == [True, False]
        assert is_scored(await pool.score(doing("fine"), CUSTOM)) == [True]
        (idle,) = pool._crew.serving
        os.kill(await idle.worker._actor.__ray_call__.remote(lambda _: os.getpid()), signal.SIGKILL)
        while pool._crew.failure is None:
            await asyncio.sleep(0.1)
        await pool.score(doing("fine"), CUSTOM)

    with pytest.raises(ResourceError, match=r"1 reward actors were lost within .*fleet\.max_restarts is 0.*died"):
        in_pool(lose_two, max_restarts=0, **HOSTILE)


def test_an_actor_sees_no_gpu_and_loads_no_torch() -> None:
    async def look(pool: RewardPool) -> tuple[str, set[str]]:
        await pool.score(group_of(TEXTS), WEIGHTS)
        call = pool._crew.members[0].worker._actor.__ray_call__
        return (
            await call.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"]),
            await call.remote(lambda _: set(sys.modules)),
        )

    visible, modules = in_pool(look)
    assert visible == ""
    assert "torch" not in modules


def test_closing_the_pool_ends_its_processes_also_the_one_for_suspects() -> None:
    recruits = Recruits()
    in_pool(lambda pool: pool.score(doing("raise"), CUSTOM), make=recruits.make, num_actors=2, **HOSTILE)
    assert len(recruits.made) == 3 and recruits.num_for_suspects == 1
    assert all(ends(worker) for worker in recruits.made)


def ends(worker: RewardWorker, within_s: float = 30.0) -> bool:
    """Whether an actor that was told to end does so; Ray does not wait for it."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        try:
            ray.get(worker._actor.__ray_ready__.remote())
        except ray.exceptions.RayActorError:
            return True
        time.sleep(0.1)
    return False
