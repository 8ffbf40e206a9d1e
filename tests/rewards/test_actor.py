import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import ray

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.errors import RewardError
from museg_ray.rewards.actor import RewardPool
from museg_ray.rewards.recipe import score_response
from museg_ray.types import GroundingQuery, Response, ResponseGroup

pytestmark = pytest.mark.usefixtures("ray_local")

WEIGHTS = RewardWeights(matching=1.0, timestamp=1.0, format=1.0)
TEXTS = [
    "<think>1 to 2</think><answer>1.00-2.00</answer>",
    "<think></think><answer>1.50-3.00</answer>",
    "nothing",
]


def group_of(texts: list[str], query_id: str = "train/0") -> ResponseGroup:
    query = GroundingQuery(query_id, "video.mp4", "the red circle is visible", segments=((1.0, 2.0),))
    responses = tuple(Response((1,), np.zeros(1, dtype=np.float32), text, finished=True) for text in texts)
    return ResponseGroup(query, clip_key="clip", prompt_ids=(0,), responses=responses, weight_version=0)


@contextmanager
def reward_pool(**settings: float) -> Iterator[RewardPool]:
    pool = RewardPool(RewardConfig(num_cpus=0.1, **settings))  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        pool.close()


def process_ids(pool: RewardPool) -> list[int]:
    """Ids of the actors' processes, the longest idle first, after waiting for them to be up."""
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in pool._up])


def test_a_group_gets_the_rewards_of_its_responses_in_order() -> None:
    with reward_pool() as pool:
        rewards = asyncio.run(pool.score(group_of(TEXTS), WEIGHTS))
    assert rewards == tuple(score_response(text, [(1.0, 2.0)], WEIGHTS, "sequential") for text in TEXTS)
    assert rewards[0].total == 3.0


def test_groups_wait_for_an_actor_and_are_counted() -> None:
    async def score_three(pool: RewardPool) -> None:
        tasks = [asyncio.create_task(pool.score(group_of(TEXTS), WEIGHTS)) for _ in range(3)]
        await asyncio.sleep(0)
        assert pool.num_waiting == 2
        await asyncio.gather(*tasks)
        assert pool.num_waiting == 0

    with reward_pool(num_actors=1) as pool:
        asyncio.run(score_three(pool))


def test_a_dead_actor_is_replaced_and_its_group_scored_elsewhere() -> None:
    with reward_pool(num_actors=1) as pool:
        (dead,) = process_ids(pool)
        os.kill(dead, signal.SIGKILL)
        rewards = asyncio.run(pool.score(group_of(TEXTS), WEIGHTS))
        (alive,) = process_ids(pool)
    assert rewards[0].total == 3.0
    assert alive != dead


def test_a_hanging_actor_is_killed_and_its_group_scored_elsewhere() -> None:
    with reward_pool(num_actors=2, timeout_s=5.0) as pool:
        before = process_ids(pool)
        hanging = before[0]  # the next to get a group
        os.kill(hanging, signal.SIGSTOP)
        try:
            rewards = asyncio.run(pool.score(group_of(TEXTS), WEIGHTS))
        finally:
            os.kill(hanging, signal.SIGCONT)
        after = process_ids(pool)
    assert rewards[0].total == 3.0
    assert len(after) == 2 and set(before) - set(after) == {hanging}


def test_a_group_that_two_actors_fail_on_is_named() -> None:
    with reward_pool(num_actors=2, timeout_s=0.0) as pool, pytest.raises(RewardError, match="train/17"):
        asyncio.run(pool.score(group_of(TEXTS, "train/17"), WEIGHTS))


def test_an_actor_sees_no_gpu_and_loads_no_torch() -> None:
    with reward_pool(num_actors=1) as pool:
        (actor,) = pool._up
        asyncio.run(pool.score(group_of(TEXTS), WEIGHTS))
        visible = ray.get(actor.__ray_call__.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"]))
        modules = ray.get(actor.__ray_call__.remote(lambda _: set(sys.modules)))
    assert visible == ""
    assert "torch" not in modules


def test_closing_the_pool_ends_its_processes() -> None:
    with reward_pool(num_actors=2) as pool:
        actors = list(pool._up)
        process_ids(pool)
    for actor in actors:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(actor.__ray_ready__.remote())
