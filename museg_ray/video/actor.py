"""Clip preparation on Ray: actors that work ahead of the rollouts, and the driver's handle on them.

Pixels go from a reader process into the frame store and from there, mapped, to whoever needs them. Through the driver
go names and sizes.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from museg_ray.config.schema import Config, VideoConfig
from museg_ray.errors import ResourceError, VideoError, VideoFault
from museg_ray.events import EventKind, EventSink
from museg_ray.fleet.crew import Crew, CrewPool
from museg_ray.fleet.deadlines import deadlines
from museg_ray.fleet.errors import MemberLost, first_line, result_of, started
from museg_ray.fleet.places import ANYWHERE, Place, Places
from museg_ray.fleet.worker import ActorWorker
from museg_ray.types import Clip
from museg_ray.video.frames import largest_clip_bytes
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip, Tell, open_store, refused
from museg_ray.video.reader import GuardedReader
from museg_ray.video.store import GIB

RETRY_AFTER_S = (2.0, 10.0)
"""Pauses before storage that did not answer is asked again."""
MAX_DEATHS = 2
"""So many actors may die over a video."""
SEND_TRIES = 3
"""Between being prepared and being sent a clip may be driven out by others."""


class PrepareActor:
    """One reader with its process. All deadlines are the reader's: it kills what hangs."""

    def __init__(self, config: VideoConfig) -> None:
        self._config = config
        self._told: deque[str] = deque()
        self._reader = GuardedReader(config, self._told.append)

    @ray.method(concurrency_group="control")
    def ready(self) -> list[str]:
        """Returns once the process is up, also while a video is read: what there is to tell the user since."""
        return [self._told.popleft() for _ in range(len(self._told))]

    def prepare(self, video: str) -> PreparedClip:
        return self._reader.prepare(video)

    def send(self, video: str) -> Clip:
        """The clip itself, for a machine that does not share this one's store."""
        for _ in range(SEND_TRIES):
            prepared = self._reader.prepare(video)
            if clip := open_store(self._config).get(prepared.key, video):
                return clip
        raise ResourceError(f"The clip of {video} leaves the frame store at once: raise video.store_gib.")


class ClipWorker(ActorWorker):
    """One preparation actor, as a crew sees it."""

    def __init__(self, config: VideoConfig, place: Place, tell: Tell) -> None:
        super().__init__(place)
        self._config, self._tell = config, tell

    async def start(self) -> None:
        """
        Raises:
            ResourceError: it cannot start.
            MemberLost: its process died.
        """
        # Ray leaves GPUs visible to actors that reserve none; a CUDA context here would take memory from the engines.
        cpu_only = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        options: Any = {
            "num_cpus": self._config.num_cpus,
            "runtime_env": cpu_only,
            "concurrency_groups": {"control": 1},
        }
        remote_class: Any = ray.remote(scheduling_strategy=self._place.strategy(), **options)(PrepareActor)
        self._actor = remote_class.remote(self._config)
        try:
            await started(self._actor.ready.remote())
        except RayError as error:
            raise ResourceError(f"A clip preparation actor did not start: {first_line(error)}") from error

    async def ping(self) -> bool:
        for text in await result_of(self._actor.ready.remote()):
            self._tell(text)
        return False

    async def prepare(self, video: str) -> ClipHandle:
        """
        Raises:
            VideoError, ResourceError: as the reader raises them.
            MemberLost: the actor died.
        """
        return ClipHandle(await result_of(self._actor.prepare.remote(video)), self._actor)


class ClipPool(CrewPool[ClipWorker]):
    """Prepared clips by video. For one event loop.

    An actor that dies is replaced.
    """

    def __init__(
        self,
        config: Config,
        events: EventSink,
        make: Callable[[], Any] | None = None,
        places: Places | None = None,
    ) -> None:
        """Start `video.num_actors` actors.

        Args:
            config: of the run.
            events: are told of joins and losses, and of a process elsewhere that is waited for long.
            make: what stands in for a new `ClipWorker`; None: a Ray actor.
            places: of the run; None: wherever Ray finds room.
        """
        self._config = config.video
        tell = partial(events, EventKind.WAIT)
        make_worker = make or (lambda: ClipWorker(config.video, places.take("clips") if places else ANYWHERE, tell))
        self._crew = Crew("clips", make_worker, config.fleet, deadlines(config), events)
        self.resize(config.video.num_actors)
        self._pending: dict[str, asyncio.Task[ClipHandle]] = {}  # being prepared, or prepared ahead and not yet used
        self._ahead: dict[str, int] = {}  # bytes that each clip prepared ahead takes, or may take
        self._later: OrderedDict[str, None] = OrderedDict()  # to prepare ahead once there is room
        self.num_decoded = 0
        """Clips that no store had yet."""

    async def get(self, video: str, anew: bool = False) -> ClipHandle:
        """The clip's handle; callers that ask for a video while it is being prepared share that.

        Args:
            video: its path or address.
            anew: not one that was prepared ahead: its machine may be the one that is gone.

        Raises:
            VideoError: the video cannot be read, took longer than its deadline, or crashed its reader.
            ResourceError: an actor does not start, or the frame store cannot be used.
        """
        self._later.pop(video, None)
        task = self._pending.get(video)
        if task is None or (anew and task.done()):
            task = self._start(video)
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
        self._later.update((video, None) for video in videos if video not in self._pending)
        self._work_ahead()

    async def close(self) -> None:
        """Stop all actors, also busy ones."""
        self._later.clear()
        for task in self._pending.values():
            task.cancel()
        await super().close()

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
        elif self._pending.get(video) is task:  # else it was taken over in the moment in which it was done
            del self._pending[video]
        self._work_ahead()

    def _work_ahead(self) -> None:
        """Start what there is room for. No more at once than there are actors, so that a clip that is needed now waits
        for one of them at most."""
        most_bytes, largest_bytes = self._config.ahead_gib * GIB, largest_clip_bytes(self._config)
        while self._later and self._num_running_ahead < self._crew.num_wanted:
            if sum(self._ahead.values()) + largest_bytes > most_bytes:
                return
            video, _ = self._later.popitem(last=False)
            self._ahead[video] = largest_bytes
            self._start(video)

    @property
    def _num_running_ahead(self) -> int:
        return sum(not self._pending[video].done() for video in self._ahead)

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
        """A second process tells whether it was the video that ended the first one."""
        reason = ""
        for _ in range(MAX_DEATHS):
            async with self._crew.lease() as member:
                try:
                    call = member.worker.prepare(video)
                    handle = await member.run(f"preparing {video}", call, self._crew.deadlines["prepare"])
                    self.num_decoded += handle.prepared.was_decoded
                    return handle
                except MemberLost as error:  # with its node, or for lack of memory
                    reason = str(error)
                    self._crew.lose(member, reason)
        raise refused(video, VideoError(f"it ended the actor that read it, twice ({reason})", VideoFault.CRASHED))
