"""Clip preparation in processes of its own: one decode a video, a deadline, and a crash that costs one actor only.

A Clip goes from its ClipActor into the object store and from there to whoever reads the reference; the driver, which
holds the pool, never sees pixels.
"""

import asyncio
from collections import OrderedDict
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import ResourceError, VideoError
from museg_ray.types import Clip
from museg_ray.video.decode import read_clip


class ClipActor:
    """Reads one video at a time."""

    def __init__(self, config: VideoConfig) -> None:
        self._config = config

    def ready(self) -> None:
        """Returns once the process is up."""

    @ray.method(num_returns=2)
    def read(self, video: str) -> tuple[str, Clip]:
        """The clip's key, small enough to wait for in the driver, and the clip, which stays in the object store."""
        clip = read_clip(video, self._config)
        return clip.key, clip


class ClipPool:
    """Prepared clips by video path: decoded once, the `cache_clips` most recently used kept. For one event loop.

    Actors start when first needed, at most `num_actors`; one that hangs or dies is given up and not missed.
    """

    def __init__(self, config: VideoConfig) -> None:
        self._config = config
        self._turns = asyncio.Semaphore(config.num_actors)
        self._actors: list[ActorHandle] = []  # all that live
        self._idle: list[ActorHandle] = []
        self._clips: OrderedDict[str, ray.ObjectRef] = OrderedDict()
        self._pending: dict[str, asyncio.Task[ray.ObjectRef]] = {}
        self.num_decoded = 0
        """Videos decoded."""
        self.num_hits = 0
        """Requests answered without a decode of their own."""

    async def get(self, video: str) -> ray.ObjectRef:
        """Reference of the Clip; callers that ask for a video while it is being decoded share that decode.

        Raises:
            VideoError: the video cannot be read, took longer than `deadline_s`, or crashed the decoder.
            ResourceError: an actor does not start.
        """
        if video in self._clips:
            self.num_hits += 1
            self._clips.move_to_end(video)
            return self._clips[video]
        if video in self._pending:
            self.num_hits += 1
        else:
            self._pending[video] = asyncio.create_task(self._prepare(video))
        # Shielded: a caller that is cancelled must not take the clip from the others.
        return await asyncio.shield(self._pending[video])

    def close(self) -> None:
        """Stop all actors, also busy ones, and forget all clips."""
        for task in self._pending.values():
            task.cancel()
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        self._idle.clear()
        self._clips.clear()

    async def _prepare(self, video: str) -> ray.ObjectRef:
        try:
            async with self._turns:
                clip = await self._decode(video)
        finally:
            del self._pending[video]
        self.num_decoded += 1
        self._clips[video] = clip
        if len(self._clips) > self._config.cache_clips:
            self._clips.popitem(last=False)
        return clip

    async def _decode(self, video: str) -> ray.ObjectRef:
        try:
            return await self._read(self._idle.pop() if self._idle else await self._start_actor(), video)
        except RayError:
            pass  # Dead: killed by this video, or lost while idle with its node. A fresh process tells which.
        try:
            return await self._read(await self._start_actor(), video)
        except RayError as error:
            raise VideoError(
                f"The video {video} killed the process that read it, twice. "
                f"Take its rows out of the annotation file, or look for a lack of memory. {error}"
            ) from error

    async def _read(self, actor: ActorHandle, video: str) -> ray.ObjectRef:
        """Raises RayError, but never RayTaskError, when the actor is dead."""
        key: ray.ObjectRef
        clip: ray.ObjectRef
        key, clip = actor.read.remote(video)
        try:
            await asyncio.wait_for(key, self._config.deadline_s)
        except RayTaskError as error:
            self._idle.append(actor)
            raise error.cause from error
        except TimeoutError as error:
            self._give_up(actor)
            raise VideoError(
                f"Reading the video {video} timed out after {self._config.deadline_s:g} s. "
                "Check that the file plays and its storage answers; raise video.deadline_s for very long videos."
            ) from error
        except RayError:
            self._give_up(actor)
            raise
        self._idle.append(actor)
        return clip

    async def _start_actor(self) -> ActorHandle:
        """A new actor, up, so that the deadline times the video and not the start of a process."""
        # Ray leaves GPUs visible to actors that reserve none; a CUDA context here would take memory from the engines.
        cpu_only = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        remote_class: Any = ray.remote(num_cpus=self._config.num_cpus, runtime_env=cpu_only)(ClipActor)
        actor: ActorHandle = remote_class.remote(self._config)
        self._actors.append(actor)
        try:
            await actor.ready.remote()
        except RayError as error:
            self._give_up(actor)
            raise ResourceError(f"A clip preparation actor did not start: {error}") from error
        return actor

    def _give_up(self, actor: ActorHandle) -> None:
        ray.kill(actor)
        self._actors.remove(actor)
