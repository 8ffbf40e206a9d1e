"""Stand-ins for the members of every crew, in this process: real crews and pools work with them as with actors.

What a group holds follows from query, seed, weights and version, as with an engine; what befalls a member, the script
says.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from museg_ray.config.schema import RewardConfig, RolloutConfig
from museg_ray.errors import VideoError, VideoFault
from museg_ray.fleet.errors import MemberLost
from museg_ray.rewards.recipe import Recipe
from museg_ray.rewards.scorer import Outcome, pack_outcomes, unpack
from museg_ray.rollout.engine import Sampling
from museg_ray.types import Group, Issue, Response, VersionSpan
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.weights.channel import Confirmed
from tests.train.script import Script, number


class _FakeWorker:
    """One that lives until it is killed."""

    node = "here"

    def __init__(self, script: Script, name: str) -> None:
        self.name = name
        self.is_leaving = False
        """It has been told that its machine will be taken away."""
        self._script = script
        self._is_dead = False

    async def placed(self) -> bool:
        return False

    async def start(self) -> None:
        await self._at("start")

    async def ping(self) -> bool:
        await self._at("ping")
        return self.is_leaving

    async def close(self) -> None:
        await self._at("close")
        self._is_dead = True

    def kill(self) -> None:
        self._is_dead = True

    async def _at(self, what: str) -> None:
        """
        Raises:
            MemberLost: it is dead, or dies here.
        """
        self._check_alive()
        await self._script.moment(self.name, what)
        self._check_alive()

    def _check_alive(self) -> None:
        if self._is_dead:
            raise MemberLost(f"{self.name} is dead")


class FakeEngine(_FakeWorker):
    """Stands in for `RolloutWorker`. Its weights are the number of a `FakeLearner`; those of the model folder are 0."""

    def __init__(self, script: Script, name: str, rollout: RolloutConfig) -> None:
        super().__init__(script, name)
        self._on_push = rollout.on_push
        self._weight, self.version = 0.0, 0
        self.num_running = 0

    async def generate(self, issue: Issue, prompt_ids: Sequence[int], clip: ClipHandle, sampling: Sampling) -> Group:
        self.num_running += 1
        try:
            while True:
                weight, version = self._weight, self.version
                await self._at("generate")
                if version == self.version or self._on_push != "restart":
                    break
        finally:
            self.num_running -= 1
        # Not the whole path: what is sampled must not depend on the folder that a test happens to get.
        about = (issue.query.query_id, Path(clip.prepared.key).name, weight, version, issue.seed)
        return Group(
            issue=issue,
            clip_key=clip.prepared.key,
            clip_duration_s=clip.prepared.duration_s,
            prompt_ids=tuple(prompt_ids),
            responses=tuple(self._response(number(*about, i), version) for i in range(sampling.group_size)),
            weight_version=version,
        )

    async def update_weights(self, version: int, weights: float) -> Confirmed:
        await self._at("update_weights")
        assert version > self.version
        while self._on_push == "wait" and self.num_running:
            await asyncio.sleep(0.01)
            self._check_alive()
        self._weight, self.version = weights, version
        return Confirmed(version)

    def _response(self, seed: int, version: int) -> Response:
        start_s = seed % 90 / 10
        answer = f"{start_s}-{start_s + 2.5}" if seed % 5 else "nothing"
        text = f"<think>{'so ' * (seed % 7)}</think><answer>{answer}</answer>"
        num_tokens = 2 + seed % 9
        spans = () if version == self.version else (VersionSpan(version, 1), VersionSpan(self.version, num_tokens - 1))
        return Response((1,) * num_tokens, np.zeros(num_tokens, np.float32), text, seed % 11 > 0, spans)


class FakeScorer(_FakeWorker):
    """Stands in for `RewardWorker`: the real rewards, in this process. A response of thirteen cannot be scored."""

    async def score(self, parts: Sequence[bytes]) -> bytes:
        await self._at("score")
        recipe, outcomes = Recipe(RewardConfig()), list[list[Outcome]]()
        for texts, query, weights in unpack(parts):
            prepared = [
                "died" if number(text, query.query_id) % 13 == 0 else recipe.score(text, query, weights)
                for text in texts
            ]
            outcomes.append(prepared)
        return pack_outcomes(outcomes)


class FakePreparer(_FakeWorker):
    """Stands in for `ClipWorker`. Nobody opens the clips that it names."""

    def __init__(self, script: Script, name: str, unreadable: frozenset[str]) -> None:
        """`unreadable`: names of video files."""
        super().__init__(script, name)
        self._unreadable = unreadable

    async def prepare(self, video: str) -> ClipHandle:
        await self._at("prepare")
        if Path(video).name in self._unreadable:
            raise VideoError(f"{video} is cut off", VideoFault.CUT_OFF)
        prepared = PreparedClip(video, video, (4, 28, 28, 3), duration_s=12.0, was_decoded=True)
        return ClipHandle(prepared, origin=None)
