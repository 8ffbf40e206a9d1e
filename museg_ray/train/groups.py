"""From one query to its scored group: clip, prompt, rollout, rewards."""

import time
from dataclasses import dataclass, replace

import numpy as np

from museg_ray.algo.advantages import group_advantages
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.data.prompts import render_prompt
from museg_ray.errors import VideoError
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.rollout.engine import Sampling
from museg_ray.train.parts import Parts
from museg_ray.train.quarantine import Quarantine
from museg_ray.types import GroundingQuery, ResponseGroup, RewardParts, SampledGroup, ScoredGroup, Unscored
from museg_ray.video.loader import ClipHandle


@dataclass(frozen=True, slots=True)
class TimedGroup:
    """A group with what each of its stages took."""

    sampled: SampledGroup
    clip: ClipHandle
    clip_s: float
    rollout_s: float
    reward_s: float


class GroupMaker:
    """Asks the parts of a run for groups; keeps nothing between them."""

    def __init__(self, config: Config, parts: Parts, quarantine: Quarantine) -> None:
        self._config = config
        self._parts = parts
        self._quarantine = quarantine

    async def make(self, query: GroundingQuery, step: int, index: int, phase: PhaseConfig) -> "TimedGroup | VideoError":
        """The scored group of a step's query, the `index`-th one; or why its video cannot be read, which goes into
        quarantine, as do responses without a score."""
        try:
            return await self._make(query, step, index, phase)
        except VideoError as error:
            self._quarantine.add_video(step, query, error)
            return error

    def prompt_ids(self, query: GroundingQuery, phase: PhaseConfig) -> list[int]:
        return chat_prompt_ids(self._parts.tokenizer, render_prompt(phase.prompt, query.question))

    async def sample(
        self, query: GroundingQuery, prompt_ids: list[int], clip: ClipHandle, step: int, index: int
    ) -> tuple[ClipHandle, ResponseGroup]:
        """The group, and the clip that it was sampled with.

        Invariant: the seed follows from the step's number and the query's place in it alone, so that a resumed run
        samples what an uninterrupted one would have.
        """
        rollout = self._config.rollout
        seed = np.random.SeedSequence((self._config.run.seed, step, index)).generate_state(1)[0]
        sampling = Sampling(
            group_size=rollout.group_size,
            temperature=rollout.temperature,
            max_completion_tokens=rollout.max_completion_tokens,
            seed=int(seed),
        )
        try:
            return clip, await self._parts.rollouts.generate(query, prompt_ids, clip, sampling)
        except VideoError:  # it left the store meanwhile, or the machine that has it: prepared once more
            clip = await self._parts.clips.get(query.video)
            return clip, await self._parts.rollouts.generate(query, prompt_ids, clip, sampling)

    async def _make(self, query: GroundingQuery, step: int, index: int, phase: PhaseConfig) -> TimedGroup:
        start_s = time.monotonic()
        clip = await self._parts.clips.get(query.video)
        clip_s = time.monotonic()
        clip, group = await self.sample(query, self.prompt_ids(query, phase), clip, step, index)
        rollout_s = time.monotonic()
        outcomes = await self._parts.rewards.score(group, phase.weights)
        end_s = time.monotonic()
        self._quarantine.add(step, group, outcomes)
        scored = _scored_group(group, outcomes, self._config.algo.scale_advantages)
        sampled = SampledGroup(group, outcomes, scored)
        return TimedGroup(sampled, clip, clip_s - start_s, rollout_s - clip_s, end_s - rollout_s)


def _scored_group(
    group: ResponseGroup, outcomes: tuple[RewardParts | Unscored, ...], scale_advantages: bool
) -> ScoredGroup | None:
    """The group without its unscored responses; None when fewer than two are left, which cannot be compared."""
    scored = [(r, o) for r, o in zip(group.responses, outcomes, strict=True) if isinstance(o, RewardParts)]
    if len(scored) < 2:
        return None
    responses, rewards = zip(*scored, strict=True)
    totals = np.array([parts.total for parts in rewards], dtype=np.float32)  # [G]
    return ScoredGroup(replace(group, responses=responses), rewards, group_advantages(totals, scale_advantages))
