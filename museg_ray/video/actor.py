"""Clip preparation on Ray: actors that work ahead of the rollouts, and the driver's handle on them.

Pixels go from a reader process into the frame store and from there, mapped, to whoever needs them. Through the driver
go names and sizes.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import ResourceError, VideoError, VideoFault
from museg_ray.types import Clip
from museg_ray.video.frames import largest_clip_bytes
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip, open_store, refused
from museg_ray.video.reader import GuardedReader
from museg_ray.video.store import GIB

START_TIMEOUT_S = 300.0
RETRY_AFTER_S = (2.0, 10.0)
"""Pauses before storage that did not answer is asked again."""
SEND_TRIES = 3
"""Between being prepared and being sent a clip may be driven out by others."""


class PrepareActor:
    """One reader with its process. All deadlines are the reader's: it kills what hangs."""

    def __init__(self, config: VideoConfig) -> None:
        self._config = config
        self._reader = GuardedReader(config)

    def ready(self) -> None:
        """Returns once the process is up."""

    def prepare(self, video: str) -> PreparedClip:
        return self._reader.prepare(video)

    def send(self, video: str) -> Clip:
        """The clip itself, for a machine that does not share this one's store."""
        for _ in range(SEND_TRIES):
            prepared = self._reader.prepare(video)
            if clip := open_store(self._config).get(prepared.key, video):
                return clip
        raise ResourceError(f"The clip of {video} leaves the frame store at once: raise video.store_gib.")


class ClipPool:
    """Prepared clips by video. For one event loop.

    An actor that dies is replaced.
    """

    def __init__(self, config: VideoConfig) -> None:
        self._config = config
        self._turns = asyncio.Semaphore(config.num_actors)
        self._actors: list[ActorHandle] = []  # all that live
        self._idle: list[ActorHandle] = []
        self._pending: dict[str, asyncio.Task[ClipHandle]] = {}  # being prepared, or prepared ahead and not yet used
        self._ahead: dict[str, int] = {}  # bytes that each clip prepared ahead takes, or may take
        self._later: deque[str] = deque()  # to prepare ahead once there is room
        self.num_decoded = 0
        """Clips that no store had yet."""

    async def ready(self) -> None:
        """Start all actors.

        Raises:
            ResourceError: one does not start.
        """
        self._idle += await asyncio.gather(*(self._start_actor() for _ in range(self._config.num_actors)))

    async def get(self, video: str) -> ClipHandle:
        """The clip's handle; callers that ask for a video while it is being prepared share that.

        Raises:
            VideoError: the video cannot be read, took longer than its deadline, or crashed its reader.
            ResourceError: an actor does not start, or the frame store cannot be used.
        """
        if video in self._later:
            self._later.remove(video)
        task = self._pending.get(video) or self._start(video)
        if self._ahead.pop(video, None) is not None:  # it is used now: there is room for another one
            if task.done():
                del self._pending[video]
            self._work_ahead()
        # Shielded: a caller that is cancelled must not take the clip from the others.
        return await asyncio.shield(task)

    def prefetch(self, videos: Iterable[str]) -> None:
        """Prepare these next, in this order, as far as `ahead_gib` goes; what is asked for meanwhile comes before.

        A video that cannot be read is told to whoever asks for it.
        """
        self._later.extend(video for video in videos if video not in self._pending and video not in self._later)
        self._work_ahead()

    def close(self) -> None:
        """Stop all actors, also busy ones."""
        self._later.clear()
        for task in self._pending.values():
            task.cancel()
        for actor in self._actors:
            ray.kill(actor)  # the kernel ends its reader process with it
        self._actors.clear()
        self._idle.clear()

    def _start(self, video: str) -> asyncio.Task[ClipHandle]:
        task = asyncio.create_task(self._prepare(video))
        task.add_done_callback(partial(self._done, video))
        self._pending[video] = task
        return task

    def _done(self, video: str, task: asyncio.Task[ClipHandle]) -> None:
        """A clip that was prepared ahead waits for its user; of another one the callers hold the task."""
        if task.cancelled():  # closing
            return
        failed = task.exception() is not None  # asked for here too: its callers may be gone
        if video in self._ahead:
            self._ahead[video] = 0 if failed else task.result().prepared.size_bytes
        else:
            del self._pending[video]
        self._work_ahead()

    def _work_ahead(self) -> None:
        """Start what there is room for. No more at once than there are actors, so that a clip that is needed now waits
        for one of them at most."""
        room_bytes = self._config.ahead_gib * GIB - sum(self._ahead.values())
        num_running = sum(not self._pending[video].done() for video in self._ahead)
        largest_bytes = largest_clip_bytes(self._config)
        while self._later and num_running < self._config.num_actors and room_bytes >= largest_bytes:
            video = self._later.popleft()
            self._ahead[video] = largest_bytes
            self._start(video)
            num_running, room_bytes = num_running + 1, room_bytes - largest_bytes

    async def _prepare(self, video: str) -> ClipHandle:
        for pause_s in RETRY_AFTER_S:
            try:
                return await self._prepare_once(video)
            except VideoError as error:
                if error.fault is not VideoFault.UNREACHABLE:
                    raise
            await asyncio.sleep(pause_s)
        return await self._prepare_once(video)

    async def _prepare_once(self, video: str) -> ClipHandle:
        async with self._turns:
            handle = await self._prepare_guarded(video)
        self.num_decoded += handle.prepared.was_decoded
        return handle

    async def _prepare_guarded(self, video: str) -> ClipHandle:
        try:
            return await self._ask(self._idle.pop() if self._idle else await self._start_actor(), video)
        except RayError:
            pass  # Dead: lost with its node, or for lack of memory. A fresh process tells whether it was the video.
        try:
            return await self._ask(await self._start_actor(), video)
        except RayError as error:
            reason = VideoError(f"it ended the actor that read it, twice ({error})", VideoFault.CRASHED)
        raise refused(video, reason)

    async def _ask(self, actor: ActorHandle, video: str) -> ClipHandle:
        """Raises RayError, but never RayTaskError, when the actor is dead."""
        try:
            prepared: PreparedClip = await actor.prepare.remote(video)
        except RayTaskError as error:
            self._idle.append(actor)
            raise error.cause from None
        except RayError:
            self._give_up(actor)
            raise
        self._idle.append(actor)
        return ClipHandle(prepared, actor)

    async def _start_actor(self) -> ActorHandle:
        # Ray leaves GPUs visible to actors that reserve none; a CUDA context here would take memory from the engines.
        cpu_only = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        remote_class: Any = ray.remote(num_cpus=self._config.num_cpus, runtime_env=cpu_only)(PrepareActor)
        actor: ActorHandle = remote_class.remote(self._config)
        self._actors.append(actor)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await actor.ready.remote()
        except TimeoutError:
            self._give_up(actor)
            raise ResourceError(
                f"A clip preparation actor found no place in the cluster within {START_TIMEOUT_S:g} s; it reserves "
                f"{self._config.num_cpus:g} CPUs. Lower video.num_actors or video.num_cpus, or add machines."
            ) from None
        except RayError as error:
            self._give_up(actor)
            raise ResourceError(f"A clip preparation actor did not start: {error}") from error
        return actor

    def _give_up(self, actor: ActorHandle) -> None:
        ray.kill(actor)
        self._actors.remove(actor)
