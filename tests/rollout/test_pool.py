"""Two real engines in Ray actors."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from museg_ray.config.schema import Config
from museg_ray.errors import ModelError, ResourceError, RolloutError, WeightSyncError
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import RolloutPool
from museg_ray.types import Clip, Group, Issue
from museg_ray.video.loader import ClipHandle
from museg_ray.weights.blob import weights_to_blob

GREEDY = Sampling(group_size=1, temperature=0.0, max_completion_tokens=8)
Weights = dict[str, torch.Tensor]


class Pool:
    """The pool with its event loop and one query, so that a test reads as plain calls."""

    def __init__(self, runner: asyncio.Runner, pool: RolloutPool, issue: Issue, prompt_ids: list[int]):
        self.run, self.pool = runner.run, pool
        self._issue, self._prompt_ids = issue, prompt_ids

    def sample(self, clip: ClipHandle, num_groups: int) -> list[Group]:
        async def gather() -> list[Group]:
            groups = [
                asyncio.ensure_future(self.pool.generate(self._issue, self._prompt_ids, clip, GREEDY))
                for _ in range(num_groups)
            ]
            await asyncio.sleep(0)
            assert self.pool.num_waiting == num_groups
            return await asyncio.gather(*groups)

        return self.run(gather())

    def push(self, weights: Weights) -> None:
        self.run(self.pool.push_weights(self.pool.version + 1, ray.put(weights_to_blob(weights.items()))))


@pytest.fixture(scope="module")
def pool(
    ray_local: None, tiny_model_dir: Path, rollout_config: Config, issue: Issue, prompt_ids: list[int]
) -> Iterator[Pool]:
    with asyncio.Runner() as runner:
        rollout_pool = RolloutPool(rollout_config, tiny_model_dir)
        runner.run(rollout_pool.ready())
        yield Pool(runner, rollout_pool, issue, prompt_ids)
        runner.run(rollout_pool.close())


def engine_processes() -> list[psutil.Process]:
    """Those of this test session's own Ray."""
    return [child for child in psutil.Process().children(recursive=True) if "EngineCore" in child.name()]


def test_pushed_weights_change_the_greedy_answer_of_every_actor_to_that_of_hugging_face(
    pool: Pool,
    weights: Weights,
    noisy_weights: Weights,
    clip: Clip,
    stored_clip: tuple[ClipHandle, str],
    forbidden_ids: list[int],
    reference_of: Callable[..., Any],
) -> None:
    answers = []
    for pushed in (weights, noisy_weights):
        pool.push(pushed)
        groups = pool.sample(stored_clip[0], num_groups=2)  # one on each actor, since the least loaded is taken
        prompt = groups[0].prompt_ids
        answer = reference_of(pushed, clip).greedy(prompt, forbidden_ids, GREEDY.max_completion_tokens)
        assert [group.responses[0].token_ids for group in groups] == [answer, answer]
        assert [group.weight_version for group in groups] == [pool.pool.version] * 2
        answers.append(answer)
    assert answers[0] != answers[1]
    assert pool.pool.num_waiting == 0


def test_failed_push_names_the_actor_and_leaves_the_pool_at_its_version(
    pool: Pool, weights: Weights, noisy_weights: Weights
) -> None:
    version = pool.pool.version
    with pytest.raises(WeightSyncError, match=f"rollout actor [01] did not load weights {version + 1}"):
        pool.push(dict(list(noisy_weights.items())[1:]))
    assert pool.pool.version == version
    pool.push(weights)
    assert pool.pool.version == version + 1


def test_group_on_a_killed_actor_fails_by_name_and_the_engine_dies_with_its_actor(
    pool: Pool, stored_clip: tuple[ClipHandle, str]
) -> None:
    engine = engine_processes()[0]
    os.kill(engine.ppid(), signal.SIGKILL)
    assert not psutil.wait_procs([engine], timeout=60)[1]
    with pytest.raises(RolloutError, match=r"rollout actor [01] failed on query test/0"):
        pool.sample(stored_clip[0], num_groups=2)


def test_closed_pool_leaves_no_engine_process(pool: Pool) -> None:
    engines = engine_processes()
    assert engines
    pool.run(pool.pool.close())
    assert not psutil.wait_procs(engines, timeout=60)[1]


def test_actor_that_the_cluster_has_no_room_for_is_named_with_what_it_reserves(
    ray_local: None, rollout_config: Config, tiny_model_dir: Path
) -> None:
    rollout = replace(rollout_config.rollout, num_actors=1, num_cpus=1000.0, start_timeout_s=1.0)

    async def start() -> None:
        pool = RolloutPool(replace(rollout_config, rollout=rollout), tiny_model_dir)
        try:
            await pool.ready()
        finally:
            await pool.close()

    with pytest.raises(ResourceError, match=r"rollout actor 0 of 1 .* reserves 1000 CPUs"):
        asyncio.run(start())


def test_actor_with_an_unusable_model_folder_is_named_with_the_reason(
    ray_local: None, rollout_config: Config, tmp_path: Path
) -> None:
    async def start() -> None:
        pool = RolloutPool(replace(rollout_config, rollout=replace(rollout_config.rollout, num_actors=1)), tmp_path)
        try:
            await pool.ready()
        finally:
            await pool.close()

    with pytest.raises(ModelError, match=r"rollout actor 0 did not start: .*tokenizer"):
        asyncio.run(start())
