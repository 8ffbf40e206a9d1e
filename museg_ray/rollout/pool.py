"""The rollout actors as one: groups go to the least loaded, weights go to all."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from museg_ray.config.schema import Config
from museg_ray.errors import MusegError, ResourceError, RolloutError, VideoError, WeightSyncError
from museg_ray.rollout.actor import start_actor
from museg_ray.rollout.engine import Sampling
from museg_ray.types import GroundingQuery, ResponseGroup
from museg_ray.video.loader import ClipHandle

CLOSE_TIMEOUT_S = 20.0
"""For an engine to end by itself; then its actor is killed, and the engine's process with it."""


@dataclass(slots=True)
class _Member:
    name: str
    actor: ActorHandle
    placed: ray.ObjectRef
    """Done once the actor has a process."""
    started: ray.ObjectRef
    """Done once its engine is up."""
    num_groups: int = 0
    """Groups inside the actor."""


class RolloutPool:
    """Starts `rollout.num_actors` actors at once. For one event loop."""

    def __init__(self, config: Config, model_dir: Path) -> None:
        self._config = config.rollout
        self._version = 0
        self._members: list[_Member] = []
        for index in range(config.rollout.num_actors):
            actor = start_actor(model_dir, config)
            name = f"rollout actor {index}"
            self._members.append(_Member(name, actor, actor.ping.remote(), actor.start.remote()))

    @property
    def num_waiting(self) -> int:
        """Groups that are being sampled or wait for it."""
        return sum(member.num_groups for member in self._members)

    @property
    def version(self) -> int:
        """Version of the weights that every actor samples from; those of the model folder are 0."""
        return self._version

    async def ready(self) -> None:
        """Wait until every engine is up.

        Raises:
            ResourceError: an actor found no place in the cluster within `start_timeout_s`.
            RolloutError: an engine failed, or did not start within `start_timeout_s`.
            ModelError: the model folder cannot be used.
        """
        starts = [asyncio.ensure_future(member.started) for member in self._members]
        done, pending = await asyncio.wait(
            starts, timeout=self._config.start_timeout_s, return_when=asyncio.FIRST_EXCEPTION
        )
        for start in pending:
            start.cancel()
        for member, start in zip(self._members, starts, strict=True):
            if start in done and (error := start.exception()):
                raise _own_error(error, RolloutError, f"{member.name} did not start") from None
        for member, start in zip(self._members, starts, strict=True):
            if start in pending:
                raise self._late(member)

    async def generate(
        self, query: GroundingQuery, prompt_ids: Sequence[int], clip: ClipHandle, sampling: Sampling
    ) -> ResponseGroup:
        """Sample the group of one query on the actor with the fewest groups.

        Args:
            prompt_ids: the chat prompt with one video placeholder, from `chat_prompt_ids`.
            clip: of the query's video; the actor opens it itself.

        Raises:
            RolloutError: the actor failed, died, or was not done within `request_timeout_s`.
            VideoError: the clip left the store meanwhile, and its file can no longer be read.
            WeightSyncError: the actor has no weights that it could tag the group with.
        """
        member = min(self._members, key=lambda member: member.num_groups)
        member.num_groups += 1
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                return await member.actor.generate.remote(query, prompt_ids, clip, sampling)
        except TimeoutError:
            raise RolloutError(
                f"Query {query.query_id} was not sampled by {member.name} within "
                f"{self._config.request_timeout_s:g} s; raise rollout.request_timeout_s, or lower "
                "rollout.max_completion_tokens."
            ) from None
        except RayError as error:
            raise _own_error(error, RolloutError, f"{member.name} failed on query {query.query_id}") from None
        finally:
            member.num_groups -= 1

    async def push_weights(self, version: int, blob_ref: ray.ObjectRef) -> None:
        """Give all actors new weights at once and wait until each confirms the version. No group may be running.

        Args:
            version: above the present one.
            blob_ref: of a blob from `weights_to_blob`; each machine fetches it once.

        Raises:
            WeightSyncError: names the first actor that failed, reports another version, or was not done within
                `request_timeout_s`.
        """
        await asyncio.gather(*(self._push(member, version, blob_ref) for member in self._members))
        self._version = version

    async def close(self) -> None:
        """End the engines, then their actors; running groups fail."""
        placed = [member for member in self._members if _is_placed(member)]
        closes = (member.actor.close.remote() for member in placed)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(*closes, return_exceptions=True)  # one that died is closed already
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()

    async def _push(self, member: _Member, version: int, blob_ref: ray.ObjectRef) -> None:
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                confirmed = await member.actor.update_weights.remote(version, blob_ref)
        except TimeoutError:
            raise WeightSyncError(
                f"{member.name} did not load weights {version} within {self._config.request_timeout_s:g} s."
            ) from None
        except RayError as error:
            raise _own_error(error, WeightSyncError, f"{member.name} did not load weights {version}") from None
        if confirmed != version:
            raise WeightSyncError(f"{member.name} was given weights {version} but reports {confirmed}.")

    def _late(self, member: _Member) -> MusegError:
        limit = f"within {self._config.start_timeout_s:g} s (rollout.start_timeout_s)"
        if _is_placed(member):
            return RolloutError(f"{member.name} did not start its engine {limit}; see its log in Ray's log folder.")
        config, cluster = self._config, ray.cluster_resources()
        return ResourceError(
            f"{member.name} of {config.num_actors} found no place in the cluster {limit}. Each reserves "
            f"{config.num_cpus:g} CPUs and {config.num_gpus:g} GPUs; the cluster has {cluster.get('CPU', 0):g} CPUs "
            f"and {cluster.get('GPU', 0):g} GPUs for all parts of the run. Lower rollout.num_actors or add machines."
        )


def _is_placed(member: _Member) -> bool:
    return bool(ray.wait([member.placed], timeout=0)[0])


def _own_error(error: BaseException, kind: type[MusegError], what: str) -> MusegError:
    """Our own error out of Ray's wrapper, or `kind` with the message where it is none of ours."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, VideoError):
        return error.cause  # says all by itself, and holds its fault
    if isinstance(error, RayTaskError) and isinstance(error.cause, MusegError):
        return type(error.cause)(f"{what}: {error.cause}")
    return kind(f"{what}: {error}")
