"""One engine behind plain calls."""

import asyncio
from typing import Any

import numpy as np
import torch

from museg_ray.rollout.engine import RolloutEngine, Sampling
from museg_ray.types import Clip, GroundingQuery, Group, Issue
from museg_ray.weights.layout import Part, part_of
from tests.weights.weight_files import weights_file

SAMPLING = Sampling(group_size=4, temperature=0.9, max_completion_tokens=24)
SEED = 7
Weights = dict[str, torch.Tensor]


class Rollout:
    """The engine with its event loop and one query, so that a test reads as plain calls."""

    def __init__(self, runner: asyncio.Runner, engine: RolloutEngine, query: GroundingQuery, prompt_ids: list[int]):
        self.runner, self.run, self.engine = runner, runner.run, engine
        self.query, self.prompt_ids = query, prompt_ids

    async def generate(self, clip: Clip, sampling: Sampling, seed: int = SEED) -> Group:
        return await self.engine.generate(Issue(0, self.query, "only", seed), self.prompt_ids, clip, sampling)

    def sample(self, clip: Clip, sampling: Sampling = SAMPLING, seed: int = SEED) -> Group:
        return self.sample_many([(clip, sampling, seed)])[0]

    def sample_many(self, requests: list[tuple[Clip, Sampling, int]]) -> list[Group]:
        async def gather() -> list[Group]:
            return await asyncio.gather(*(self.generate(*request) for request in requests))

        return self.run(gather())

    def bytes_of(self, clip: Clip, sampling: Sampling = SAMPLING, seed: int = SEED) -> int:
        """What a group sends to the engine's process."""
        before = self.engine.bytes_sent
        self.sample(clip, sampling, seed)
        return self.engine.bytes_sent - before

    def push(self, weights: Weights, version: int | None = None, frozen: frozenset[Part] = frozenset()) -> int:
        """Frozen parts of `weights` are not sent."""
        version = self.engine.version + 1 if version is None else version
        sent = {name: tensor for name, tensor in weights.items() if part_of(name) not in frozen}
        with weights_file(sent, version, frozen) as file:
            return self.run(self.engine.update_weights(version, file)).version

    @property
    def num_tower_runs(self) -> int:
        """Passes of the vision tower in the engine's process since the first look at this number."""
        return self.run(self.engine._llm.collective_rpc(_num_tower_runs))[0]


def _num_tower_runs(worker: Any) -> int:
    """Runs in the engine's process."""
    tower = worker.model_runner.model.visual
    if not hasattr(tower, "runs_seen"):
        tower.runs_seen = []
        tower.register_forward_hook(lambda *_: tower.runs_seen.append(1))
    return len(tower.runs_seen)


def assert_same(group: Group, expected: Group, atol: float) -> None:
    for response, other in zip(group.responses, expected.responses, strict=True):
        assert response.token_ids == other.token_ids
        np.testing.assert_allclose(response.logprobs, other.logprobs, atol=atol, rtol=0)
