"""Two real engines in Ray actors."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from museg_ray.config.schema import Config
from museg_ray.errors import ModelError, WeightSyncError
from museg_ray.events import EventKind, no_events
from museg_ray.fleet.deadlines import Deadline
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import RolloutPool
from museg_ray.types import Clip, Group, Issue
from museg_ray.video.loader import ClipHandle
from museg_ray.weights.shared import SharedWeights
from tests.weights.weight_files import TensorSource

GREEDY = Sampling(group_size=1, temperature=0.0, max_completion_tokens=8)
LONG = Sampling(group_size=4, temperature=1.0, max_completion_tokens=256)
Weights = dict[str, torch.Tensor]


def here() -> str:
    return ray.get_runtime_context().get_node_id()


class Pool:
    """The pool with its event loop and one query, so that a test reads as plain calls."""

    def __init__(self, runner: asyncio.Runner, pool: RolloutPool, issue: Issue, prompt_ids: list[int]):
        self.run, self.pool = runner.run, pool
        self.channel = SharedWeights(pool._config, TensorSource({}, ""))
        self.events: list[tuple[EventKind, str]] = []
        self._issue, self._prompt_ids = issue, prompt_ids

    async def sample_one(self, clip: ClipHandle, sampling: Sampling = GREEDY, number: int = 0) -> Group:
        issue = replace(self._issue, issue_id=number, seed=number)
        return await self.pool.sample(issue, self._prompt_ids, clip, sampling)

    def sample(self, clip: ClipHandle, num_groups: int) -> list[Group]:
        async def gather() -> list[Group]:
            groups = [asyncio.ensure_future(self.sample_one(clip, number=number)) for number in range(num_groups)]
            await asyncio.sleep(0)
            assert self.pool.num_waiting == num_groups
            return await asyncio.gather(*groups)

        return self.run(gather())

    def push(self, weights: Weights) -> None:
        async def publish() -> None:
            version = self.pool.version + 1
            before, self.channel = self.channel, SharedWeights(self.pool._config, TensorSource(weights, here()))
            try:
                await self.pool.publish(version, await self.channel.publish(version, self.pool.nodes))
            finally:
                await before.close()

        self.run(publish())

    def states(self) -> list[str]:
        async def read() -> list[str]:
            return [member.state for member in self.pool.status().members]

        return self.run(read())

    async def until_all_serve(self) -> None:
        await self.pool.ready()

    def kinds(self) -> list[EventKind]:
        return [kind for kind, _ in self.events]


@pytest.fixture(scope="module")
def pool(
    ray_local: None, tiny_model_dir: Path, rollout_config: Config, issue: Issue, prompt_ids: list[int]
) -> Iterator[Pool]:
    with asyncio.Runner() as runner:
        made: list[Pool] = []

        def note(kind: EventKind, text: str, **_: object) -> None:
            if made:
                made[0].events.append((kind, text))

        async def start() -> RolloutPool:
            return RolloutPool(rollout_config, tiny_model_dir, note)

        made.append(Pool(runner, runner.run(start()), issue, prompt_ids))
        runner.run(made[0].pool.ready())
        yield made[0]
        runner.run(made[0].pool.close())
        runner.run(made[0].channel.close())


def engine_processes() -> list[psutil.Process]:
    """Those of the pool's actors; another module's engine may be a child of the test process itself."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "EngineCore" in child.name() and child.ppid() != os.getpid()]


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


def test_a_push_that_no_actor_can_load_is_refused_with_its_reason_and_the_next_one_recovers(
    pool: Pool, weights: Weights, noisy_weights: Weights, stored_clip: tuple[ClipHandle, str]
) -> None:
    version = pool.pool.version
    with pytest.raises(WeightSyncError, match=rf"rollout-[01] did not load weights {version + 1}: .*lacks 1 of"):
        pool.push(dict(list(noisy_weights.items())[1:]))
    pool.push(weights)
    assert [group.weight_version for group in pool.sample(stored_clip[0], num_groups=2)] == [version + 2] * 2
    assert pool.states() == ["serving"] * 2, "who could load the next one is not replaced"


@pytest.mark.parametrize("victim", ["engine", "actor"])
def test_what_is_inside_a_killed_member_is_sampled_elsewhere_and_another_joins_at_the_newest_weights(
    victim: str, pool: Pool, noisy_weights: Weights, stored_clip: tuple[ClipHandle, str]
) -> None:
    pool.push(noisy_weights)
    version, pool.events = pool.pool.version, []
    doomed = engine_processes()[0]

    async def kill_while_sampling() -> list[Group]:
        groups = [asyncio.ensure_future(pool.sample_one(stored_clip[0], LONG, number)) for number in range(4)]
        await asyncio.sleep(0.5)
        os.kill(doomed.pid if victim == "engine" else doomed.ppid(), signal.SIGKILL)
        killed_s = time.monotonic()
        while EventKind.LOSS not in pool.kinds():
            await asyncio.sleep(0.05)
        assert time.monotonic() - killed_s < 5.0
        found = await asyncio.gather(*groups)
        await pool.until_all_serve()
        return found

    groups = pool.run(kill_while_sampling())
    assert [group.issue.issue_id for group in groups] == [group.issue.seed for group in groups] == [0, 1, 2, 3]
    assert EventKind.REQUEUE in pool.kinds()
    assert not psutil.wait_procs([doomed], timeout=60)[1]
    joined = [text for kind, text in pool.events if kind is EventKind.JOIN]
    assert f"weights {version}, log-probs" in joined[-1], "it has the newest weights, and was compared"
    again = pool.run(_sample_many(pool, stored_clip[0], 4))
    assert [group.weight_version for group in again] == [version] * 4
    for group, other in zip(groups, again, strict=True):
        same = [a.token_ids == b.token_ids for a, b in zip(group.responses, other.responses, strict=True)]
        assert sum(same) >= 2, "the same seed; rounding depends on what else is in a batch"


async def _sample_many(pool: Pool, clip: ClipHandle, count: int) -> list[Group]:
    return await asyncio.gather(*(pool.sample_one(clip, LONG, number) for number in range(count)))


def test_a_group_that_is_given_up_leaves_its_engine(pool: Pool, stored_clip: tuple[ClipHandle, str]) -> None:
    async def give_up() -> float:
        groups = [asyncio.ensure_future(pool.sample_one(stored_clip[0], LONG, number)) for number in range(8)]
        await asyncio.sleep(0.5)
        for group in groups:
            group.cancel()
        await asyncio.gather(*groups, return_exceptions=True)
        begun_s = time.monotonic()
        await pool.sample_one(stored_clip[0])
        return time.monotonic() - begun_s

    assert pool.run(give_up()) < 1.0, "nothing else is sampled any more"
    assert pool.pool.num_waiting == 0


def test_an_engine_that_stops_in_a_load_is_replaced_after_its_deadline_and_the_others_serve(
    pool: Pool, noisy_weights: Weights, stored_clip: tuple[ClipHandle, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.run(pool.until_all_serve())
    monkeypatch.setitem(pool.pool._crew.deadlines, "update_weights", Deadline(4.0, "weights.timeout_s"))  # type: ignore[arg-type]
    stopped, *_ = engine_processes()
    stopped.suspend()
    pool.events.clear()
    pool.push(noisy_weights)
    (loss,) = [text for kind, text in pool.events if kind is EventKind.LOSS]
    assert "loading weights" in loss and "took longer than 4 s (weights.timeout_s)" in loss
    pool.run(pool.until_all_serve())
    groups = pool.sample(stored_clip[0], num_groups=2)
    assert {group.weight_version for group in groups} == {pool.pool.version}
    assert groups[0].responses[0].token_ids == groups[1].responses[0].token_ids
    assert not psutil.wait_procs([stopped], timeout=30)[1]


def test_closed_pool_leaves_no_engine_process(pool: Pool) -> None:
    engines = engine_processes()
    assert engines
    pool.run(pool.pool.close())
    assert not psutil.wait_procs(engines, timeout=60)[1]


def test_actor_with_an_unusable_model_folder_is_named_with_the_reason(
    ray_local: None, rollout_config: Config, tmp_path: Path
) -> None:
    async def start() -> None:
        rollout = replace(rollout_config.rollout, num_actors=1)
        pool = RolloutPool(replace(rollout_config, rollout=rollout), tmp_path, no_events)
        try:
            await pool.ready()
        finally:
            await pool.close()

    with pytest.raises(ModelError, match=r"tokenizer"):
        asyncio.run(start())
