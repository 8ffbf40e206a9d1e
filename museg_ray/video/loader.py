"""How a process that needs a clip's pixels gets them: from the frame store of its machine, mapped and not copied."""

from dataclasses import dataclass
from threading import Lock

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError, VideoFault
from museg_ray.fleet.deadlines import FETCH
from museg_ray.types import Clip
from museg_ray.video.prepare import PreparedClip, open_store, refused


@dataclass(frozen=True, slots=True)
class ClipHandle:
    """What travels between processes instead of pixels."""

    prepared: PreparedClip
    origin: ActorHandle | None
    """The preparation actor, on a machine whose store has the clip."""
    clip: Clip | None = None
    """Of one that is in no store, since it is small enough to travel itself."""


class ClipLoader:
    """Opens clips in one process; from any thread."""

    def __init__(self, config: VideoConfig) -> None:
        """
        Raises:
            ResourceError: the store's folder cannot be written.
        """
        self._store = open_store(config)
        self._turn = Lock()
        self.num_fetched = 0
        """Clips that came from another machine."""

    def load(self, handle: ClipHandle) -> Clip:
        """The clip. Where this machine's store lacks it, it is fetched from where it was prepared, once.

        Raises:
            VideoError: it left the store meanwhile and its file can no longer be read or has changed, or the machine
                that prepared it is gone.
            ResourceError: the store cannot be used.
        """
        if handle.clip is not None:
            return handle.clip
        key, video = handle.prepared.key, handle.prepared.video
        if clip := self._store.get(key, video):
            return clip
        with self._turn:
            if clip := self._store.get(key, video):
                return clip  # another thread was faster
            fetched = _fetch(handle)
            self.num_fetched += 1
            if fetched.key != key:
                raise refused(video, VideoError("its file is another one than it was", VideoFault.UNREACHABLE))
            self._store.put(fetched)
            return self._store.get(key, video) or fetched


def _fetch(handle: ClipHandle) -> Clip:
    video = handle.prepared.video
    assert handle.origin is not None
    try:
        clip: Clip = ray.get(handle.origin.send.remote(video), timeout=FETCH.limit_s)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise refused(
            video, VideoError(f"the machine that prepared it does not answer ({error})", VideoFault.UNREACHABLE)
        ) from None
    return clip
