"""Reward actors: scoring in processes of their own, so that a slow or deadly response cannot stop the driver."""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.errors import RewardError
from museg_ray.rewards.recipe import score_response
from museg_ray.types import ResponseGroup, RewardParts, Segment

MAX_ATTEMPTS = 2
"""Actors that a group is given to before the run ends: one failure may be the machine's, two are the group's."""


class RewardActor:
    """Scores the responses of one group at a time."""

    def __init__(self, local: str) -> None:
        self._local = local

    def score(self, texts: Sequence[str], truth: Sequence[Segment], weights: RewardWeights) -> tuple[RewardParts, ...]:
        return tuple(score_response(text, truth, weights, self._local) for text in texts)


RewardActorHandle: TypeAlias = "ActorHandle[RewardActor]"


class RewardPool:
    """Shares groups out over the reward actors, each scoring one group at a time.

    Groups wait here and not in an actor's own queue, so that a group that kills its actor or outlasts the deadline
    takes no other with it. Used from one event loop.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._up: dict[RewardActorHandle, ray.ObjectRef[bool]] = {}
        """All actors, each with a reference that resolves once its process is up."""
        self._idle: asyncio.Queue[RewardActorHandle] = asyncio.Queue()
        self._num_waiting = 0
        for _ in range(config.num_actors):
            self._idle.put_nowait(self._start_actor())

    @property
    def num_waiting(self) -> int:
        """Groups that wait for an actor."""
        return self._num_waiting

    async def score(self, group: ResponseGroup, weights: RewardWeights) -> tuple[RewardParts, ...]:
        """Rewards of the group's G responses, in their order.

        An actor that fails, or is not done within `timeout_s`, is killed and replaced, and the group is given to the
        next idle actor.

        Raises:
            RewardError: two actors failed on this group; names the query and both reasons.
        """
        texts = [response.text for response in group.responses]  # ids and log-probs stay here
        reasons = []
        for _ in range(MAX_ATTEMPTS):
            actor = await self._take_idle_actor()
            try:
                await self._up[actor]  # outside the deadline: a process may start slowly on a busy machine
                async with asyncio.timeout(self._config.timeout_s):
                    rewards: tuple[RewardParts, ...] = await actor.score.remote(texts, group.query.segments, weights)
                    return rewards
            except TimeoutError:
                reasons.append(f"not done after {self._config.timeout_s:g} s")
                actor = self._replace(actor)
            except RayError as error:
                reasons.append(f"{type(error).__name__}: {error}")
                actor = self._replace(actor)
            finally:
                self._idle.put_nowait(actor)
        raise RewardError(
            f"The {len(group.responses)} responses to query {group.query.query_id} could not be scored: "
            f"{MAX_ATTEMPTS} reward actors in a row failed on them ({'; then '.join(reasons)}). "
            "If the machine is overloaded, raise rewards.timeout_s; else look for the reason in the Ray worker logs."
        )

    def close(self) -> None:
        """Kill the actors. Cancel groups in progress first: they would take it for a failure, and start new ones."""
        for actor in self._up:
            ray.kill(actor)
        self._up.clear()

    async def _take_idle_actor(self) -> RewardActorHandle:
        self._num_waiting += 1
        try:
            return await self._idle.get()
        finally:
            self._num_waiting -= 1

    def _start_actor(self) -> RewardActorHandle:
        # Ray leaves GPUs visible to actors that reserve none.
        cpu_only = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        remote_class = ray.remote(RewardActor).options(num_cpus=self._config.num_cpus, runtime_env=cpu_only)
        actor = remote_class.remote(self._config.local)
        assert isinstance(actor, ActorHandle)  # to the type checker it may also be the plain class
        self._up[actor] = actor.__ray_ready__.remote()
        return actor

    def _replace(self, actor: RewardActorHandle) -> RewardActorHandle:
        ray.kill(actor)
        del self._up[actor]
        return self._start_actor()
