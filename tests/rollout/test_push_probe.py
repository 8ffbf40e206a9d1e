"""After a push engine and learner score one short sequence: weights that did not arrive whole are found by it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from museg_ray.config.schema import Config, LearnerConfig, PhaseConfig
from museg_ray.errors import ParityError
from museg_ray.learner.learner import Learner
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.rollout.pool import Request
from museg_ray.train.probe import PROBE, PushProbe
from museg_ray.types import Group, Response
from museg_ray.weights.layout import part_of
from tests.rollout.one_engine import Rollout
from tests.weights.weight_files import exported

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def learner(rollout_config: Config, tiny_model_dir: Path) -> Iterator[Learner]:
    learning = LearnerConfig(num_threads=1)
    config = replace(rollout_config, learner=learning)
    config.algo.beta, config.train.phases = 0.0, [PhaseConfig(name="only", steps=2)]
    learner = Learner(config, tiny_model_dir)
    yield learner
    learner._engine.destroy()


class OneEngine:
    """Parts of a run as far as the probe asks them."""

    def __init__(self, rollout: Rollout, learner: Learner, model_dir: Path) -> None:
        self.tokenizer, self._engine, self._learner = load_tokenizer(model_dir), rollout.engine, learner
        self.rollouts = self.learner = self
        self.distrusted: dict[str, str] = {}

    async def answers(self, request: Request) -> dict[str, Group]:
        clip = request.clip.clip
        assert clip is not None
        group = await self._engine.generate(request.issue, request.prompt_ids, clip, request.sampling)
        self.clip = clip
        return {"rollout-0": group, "rollout-1": group}

    async def gaps(self, group: Group, clips: Any) -> list[float]:
        return self._learner.gaps(group, {PROBE: self.clip})

    def distrust(self, name: str, reason: str) -> None:
        self.distrusted[name] = reason


@pytest.fixture
def probed(rollout: Rollout, learner: Learner, rollout_config: Config, tiny_model_dir: Path) -> Any:
    """The gap that the probe finds."""
    parts = OneEngine(rollout, learner, tiny_model_dir)
    probe = PushProbe(replace(rollout_config, train=replace(rollout_config.train, max_logprob_gap=1e-3)), parts)  # type: ignore[arg-type]
    return lambda: rollout.run(probe.check())


def test_what_the_learner_writes_is_what_the_engine_computes(rollout: Rollout, learner: Learner, probed: Any) -> None:
    with torch.no_grad():
        for weight in learner._engine.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ParityError, match="Not one engine computes what the learner computes"):
        probed()
    rollout.push(exported(learner))
    assert probed() < 2e-5


def test_a_push_that_left_weights_behind_is_found(
    rollout: Rollout, learner: Learner, weights: Weights, probed: Any
) -> None:
    new = exported(learner)
    for part in ("language", "tower", "merger"):
        torn = {name: weights[name] if part_of(name) == part else weight for name, weight in new.items()}
        assert any(not torch.equal(torn[name], new[name]) for name in new)
        rollout.push(torn)
        with pytest.raises(ParityError):
            probed()
    rollout.push(new)
    assert probed() < 2e-5


def _keep_old_head(worker: Any, is_kept: bool) -> None:
    """Runs in the engine's process: vLLM's own reload keeps the packed output head of before."""
    from museg_ray.weights import vllm_backend

    if not hasattr(vllm_backend, "right"):
        vllm_backend.right = vllm_backend.repack_output_head  # type: ignore[attr-defined]
    vllm_backend.repack_output_head = (lambda model: None) if is_kept else vllm_backend.right  # type: ignore[attr-defined]


def test_a_stale_output_head_is_found(rollout: Rollout, learner: Learner, probed: Any) -> None:
    """No checksum sees it: the weights themselves are right."""
    rollout.run(rollout.engine._llm.collective_rpc(_keep_old_head, args=(True,)))
    rollout.push(exported(learner))
    rollout.run(rollout.engine._llm.collective_rpc(_keep_old_head, args=(False,)))
    with pytest.raises(ParityError):
        probed()
    rollout.push(exported(learner))
    assert probed() < 2e-5


class Fleet:
    """Three engines, whose log-probs are `gaps` away from the learner's."""

    def __init__(self, model_dir: Path, gaps: dict[str, float]) -> None:
        self.tokenizer, self._gaps = load_tokenizer(model_dir), gaps
        self.rollouts = self.learner = self
        self.distrusted: dict[str, str] = {}

    async def answers(self, request: Request) -> dict[str, Group]:
        return {
            name: Group(request.issue, PROBE, 2.0, (1, 2), (Response((1,), np.full(1, gap, np.float32), "", True),), 1)
            for name, gap in self._gaps.items()
        }

    async def gaps(self, group: Group, clips: Any) -> list[float]:
        assert clips.keys() == {group.clip_key}
        return [float(response.logprobs[0]) for response in group.responses]

    def distrust(self, name: str, reason: str) -> None:
        self.distrusted[name] = reason


def check(fleet: Fleet) -> float:
    config = Config()
    config.train.max_logprob_gap = 0.1
    return asyncio.run(PushProbe(config, fleet).check())  # type: ignore[arg-type]


def test_the_engine_that_disagrees_is_replaced_and_the_others_serve_on(tiny_model_dir: Path) -> None:
    fleet = Fleet(tiny_model_dir, {"rollout-0": 0.01, "rollout-1": 0.2, "rollout-2": float("nan"), "rollout-3": 0.02})
    assert check(fleet) == pytest.approx(0.02)
    assert fleet.distrusted.keys() == {"rollout-1", "rollout-2"}
    assert "differ from the learner's by 2.00e-01 nats" in fleet.distrusted["rollout-1"]


def test_where_all_disagree_it_is_not_the_engines(tiny_model_dir: Path) -> None:
    fleet = Fleet(tiny_model_dir, {"rollout-0": 0.3, "rollout-1": 0.2})
    with pytest.raises(ParityError, match=r"of rollout-0, .* by 3\.00e-01 nats"):
        check(fleet)
    assert not fleet.distrusted


def test_without_an_engine_there_is_nothing_to_probe(tiny_model_dir: Path) -> None:
    assert check(Fleet(tiny_model_dir, {})) == 0.0
