"""From one issue to its group: clip, prompt, responses, rewards, advantages."""

from dataclasses import dataclass, replace

import numpy as np

from museg_ray.algo.advantages import group_advantages, rloo_advantages
from museg_ray.clock import now_s
from museg_ray.config.learning import AlgoConfig
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.data.fit import fit_to_file
from museg_ray.data.prompts import render_prompt
from museg_ray.errors import VideoError
from museg_ray.events import EventKind, EventSink, no_events
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.rollout.engine import Sampling
from museg_ray.train.parts import Parts
from museg_ray.types import FloatArray, GroundingQuery, Group, Issue, RewardParts, Unscored
from museg_ray.video.loader import ClipHandle


@dataclass(frozen=True, slots=True)
class Made:
    """A scored group with the clip that it is about."""

    group: Group
    clip: ClipHandle


class GroupMaker:
    """Asks the parts of a run for groups."""

    def __init__(self, config: Config, parts: Parts, events: EventSink = no_events) -> None:
        self._parts, self._events = parts, events
        self._told: set[str] = set()
        """Ids of the queries whose truth or length was told to differ from the file."""
        self._phases = {phase.name: phase for phase in config.train.phases}
        self._algo = config.algo
        rollout = config.rollout
        self._sampling = Sampling(rollout.group_size, rollout.temperature, rollout.max_completion_tokens)

    async def make(self, issue: Issue) -> Made:
        """
        Raises:
            QueryError: its video cannot be read or does not have its truth, it has no room in the model, or it kills
                the engines that sample it.
            MusegError: a part has failed for good.
        """
        phase = self._phases[issue.phase]
        start_s = now_s()
        clip = await self._parts.clips.get(issue.query.video)
        clip_s = now_s()
        issue = replace(issue, query=self._fitted(issue.query, clip))
        clip, group = await self.sample(issue, self.prompt_ids(issue.query, phase), clip)
        rollout_s = now_s()
        outcomes = await self._parts.rewards.score(group, phase.weights)
        scored = replace(
            group,
            outcomes=outcomes,
            advantages=_advantages(outcomes, self._algo),
            clip_s=clip_s - start_s,
            rollout_s=rollout_s - clip_s,
            reward_s=now_s() - rollout_s,
        )
        return Made(scored, clip)

    def _fitted(self, query: GroundingQuery, clip: ClipHandle) -> GroundingQuery:
        fitted, findings = fit_to_file(query, clip.prepared.duration_s)
        if findings and query.query_id not in self._told:
            self._told.add(query.query_id)
            for finding in findings:
                self._events(EventKind.TRUTH, f"{query.query_id}: {finding.rule}: {finding.reason}", rule=finding.rule)
        return fitted

    def prompt_ids(self, query: GroundingQuery, phase: PhaseConfig) -> list[int]:
        return chat_prompt_ids(self._parts.tokenizer, render_prompt(phase.prompt, query.question))

    async def sample(self, issue: Issue, prompt_ids: list[int], clip: ClipHandle) -> tuple[ClipHandle, Group]:
        """The group, and the clip that it was sampled with."""
        try:
            return clip, await self._parts.rollouts.sample(issue, prompt_ids, clip, self._sampling)
        except VideoError:  # it left the store meanwhile, or the machine that has it: prepared once more
            clip = await self._parts.clips.get(issue.query.video)
            return clip, await self._parts.rollouts.sample(issue, prompt_ids, clip, self._sampling)


def _advantages(outcomes: tuple[RewardParts | Unscored, ...], algo: AlgoConfig) -> FloatArray:
    """[G] against the scored responses, NaN of the others; empty where fewer than two are scored."""
    totals = np.array([o.total if isinstance(o, RewardParts) else np.nan for o in outcomes], np.float32)  # [G]
    is_scored = ~np.isnan(totals)
    if is_scored.sum() < 2:
        return np.empty(0, np.float32)
    scored = totals[is_scored]
    is_rloo = algo.advantage == "rloo"
    totals[is_scored] = rloo_advantages(scored) if is_rloo else group_advantages(scored, algo.scale_advantages)
    return totals
