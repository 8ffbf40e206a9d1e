import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import ray

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.errors import RewardError
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


def group_of(texts: Sequence[str]) -> Group:
    responses = tuple(Response((1,), np.zeros(1, dtype=np.float32), text, finished=True) for text in texts)
    return Group(Issue(0, QUERY, "only", 0), "clip", 12.0, prompt_ids=(0,), responses=responses, weight_version=0)


def doing(*deeds: str) -> Group:
    return group_of([f"<think>{deed}</think><answer>1-2</answer>" for deed in deeds])


def in_pool(use: Callable[[RewardPool], Awaitable[Result]], **settings: object) -> Result:
    """What `use` returns of a pool of one actor, or of `num_actors`."""

    async def run() -> Result:
        pool = RewardPool(RewardConfig(num_cpus=0.1, **settings))  # type: ignore[arg-type]
        try:
            await pool.ready()
            return await use(pool)
        finally:
            pool.close()

    return asyncio.run(run())


def process_ids(pool: RewardPool) -> list[int]:
    return ray.get([member.actor.__ray_call__.remote(lambda _: os.getpid()) for member in pool._members])


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
        assert pool.num_waiting == 0 and len(pool._tasks) <= 2 * CALLS_PER_ACTOR
        return await asyncio.gather(*tasks)

    expected = [Recipe(RewardConfig()).score(text, QUERY, WEIGHTS) for text in TEXTS]
    for index, rewards in enumerate(in_pool(score_many, num_actors=2)):
        assert rewards == tuple(expected[index % 3 :])


def test_groups_wait_for_an_actor_and_are_counted() -> None:
    async def score_one_by_one(pool: RewardPool) -> None:
        tasks = []
        for _ in range(CALLS_PER_ACTOR + 3):  # so many calls at the actor, each of one group; the others wait
            tasks.append(asyncio.create_task(pool.score(group_of(TEXTS), WEIGHTS)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert pool.num_waiting == 3
        await asyncio.gather(*tasks)
        assert pool.num_waiting == 0

    in_pool(score_one_by_one)


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

    in_pool(kill_and_score)


def test_a_process_that_does_nothing_at_all_is_replaced_and_its_group_scored_elsewhere() -> None:
    async def freeze_and_score(pool: RewardPool) -> None:
        (frozen,) = process_ids(pool)
        os.kill(frozen, signal.SIGSTOP)
        try:
            rewards = await pool.score(group_of(TEXTS), WEIGHTS)
        finally:
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
        while pool._suspects_actor is None:
            await asyncio.sleep(0.01)
        poisoned.cancel()
        outcomes = await pool.score(doing("fine", "raise"), CUSTOM)
        assert poisoned.cancelled()
        return outcomes

    good, bad = in_pool(cancel_one, **HOSTILE)
    assert isinstance(good, RewardParts)
    assert isinstance(bad, Unscored) and bad.reasons == ("ValueError: no such thing",) * 2


def test_an_actor_that_does_not_start_takes_no_groups() -> None:
    async def grow_beyond_the_cluster(pool: RewardPool) -> None:
        pool._config = replace(pool._config, num_cpus=1000)
        pool.resize(3)
        groups = await asyncio.gather(*(pool.score(group_of(TEXTS), WEIGHTS) for _ in range(20)))
        assert all(all(is_scored(rewards)) for rewards in groups)

    in_pool(grow_beyond_the_cluster)


def test_a_fault_of_ours_ends_the_run_and_is_no_quarantine() -> None:
    """A truth that no query should have: scoring it is a bug elsewhere, not a property of the responses."""
    ill_formed = replace(group_of(TEXTS), query=replace(QUERY, segments=((38.0, 13.0),)))
    with pytest.raises(RewardError, match=r"fault of museg_ray(.|\n)*ill-formed"):
        in_pool(lambda pool: pool.score(ill_formed, WEIGHTS))


def test_a_group_that_waits_while_the_pool_closes_fails_at_once() -> None:
    async def close_with_work(pool: RewardPool) -> None:
        tasks = [asyncio.create_task(pool.score(doing("slow", "slow"), CUSTOM)) for _ in range(10)]
        await asyncio.sleep(0.1)
        pool.close()
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
        assert pool.num_actors == 3
        assert all(all(is_scored(rewards)) for rewards in await asyncio.gather(*scoring))
        grown = process_ids(pool)
        assert len(set(grown)) == 3 and set(first) <= set(grown)
        scoring = [asyncio.create_task(pool.score(group_of(TEXTS), WEIGHTS)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pool.resize(1)
        assert pool.num_actors == 1
        assert all(all(is_scored(rewards)) for rewards in await asyncio.gather(*scoring))
        assert len(pool._members) == 1

    in_pool(resize)


def test_a_reward_that_the_actors_cannot_import_ends_the_run_with_its_name() -> None:
    with pytest.raises(RewardError, match=r"did not start.*no_such_module"):
        in_pool(lambda pool: pool.score(group_of(TEXTS), WEIGHTS), custom="no_such_module.reward")


def test_actors_without_a_place_in_the_cluster_end_the_run_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("museg_ray.rewards.pool.START_TIMEOUT_S", 0.5)

    async def start() -> None:
        pool = RewardPool(RewardConfig(num_actors=1, num_cpus=1000))
        try:
            await pool.ready()
        finally:
            pool.close()

    with pytest.raises(RewardError, match=r"Each reserves 1000 CPUs; lower rewards\.num_actors"):
        asyncio.run(start())


def test_an_actor_sees_no_gpu_and_loads_no_torch() -> None:
    async def look(pool: RewardPool) -> tuple[str, set[str]]:
        await pool.score(group_of(TEXTS), WEIGHTS)
        call = pool._members[0].actor.__ray_call__
        return (
            await call.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"]),
            await call.remote(lambda _: set(sys.modules)),
        )

    visible, modules = in_pool(look)
    assert visible == ""
    assert "torch" not in modules


def test_closing_the_pool_ends_its_processes_also_the_one_for_suspects() -> None:
    async def actors(pool: RewardPool) -> list[object]:
        await pool.score(doing("raise"), CUSTOM)
        return [*(member.actor for member in pool._members), pool._suspects_actor]

    closed = in_pool(actors, num_actors=2, **HOSTILE)
    assert len(closed) == 3
    assert all(ends(actor) for actor in closed)


def ends(actor: object, within_s: float = 30.0) -> bool:
    """Whether an actor that was told to end does so; Ray does not wait for it."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        try:
            ray.get(actor.__ray_ready__.remote())  # type: ignore[attr-defined]
        except ray.exceptions.RayActorError:
            return True
        time.sleep(0.1)
    return False
