"""From a path or URL to a prepared clip in the frame store: decoded only when no process has done it before."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from blake3 import blake3

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError, VideoFault
from museg_ray.types import Clip
from museg_ray.video.decode import decode_clip
from museg_ray.video.folder import ACCESS, LimitedFolder
from museg_ray.video.probe import VideoProbe, probe
from museg_ray.video.source import Source, content_hash, find_source, local_file
from museg_ray.video.store import GIB, FrameStore

PREPARATION = 1
"""Raised whenever the same file and settings would give another clip; old entries are then not found again."""
READING = 2
"""Raised whenever some kinds of files would; see `_examined`."""

Allow = Callable[[float], None]
"""Told that the next result may take so many seconds from now."""
Tell = Callable[[str], None]
"""Told in words, for the user, of a process elsewhere that is waited for."""


@dataclass(frozen=True, slots=True)
class PreparedClip:
    """What travels instead of a clip: its name in the frame store and its size."""

    key: str
    video: str
    shape: tuple[int, ...]  # [T, H, W, 3]
    duration_s: float
    was_decoded: bool
    """False when it was in the store already."""
    notices: tuple[str, ...] = ()
    """Of a file that was read now: what somebody who watches it would take otherwise."""

    @property
    def size_bytes(self) -> int:
        num_frames, height, width, channels = self.shape
        return num_frames * height * width * channels


def open_store(config: VideoConfig) -> FrameStore:
    """The store that the settings name.

    Raises:
        ResourceError: its folder cannot be written.
    """
    return FrameStore(Path(config.store_dir), config.store_gib, ACCESS[config.store_mode])


def refused(video: str, error: VideoError) -> VideoError:
    """The error that users see, from a reason alone."""
    advice = "Check that the file plays; fetch it again, or take its rows out of the annotation file."
    if error.fault == VideoFault.DECODER:
        advice = "Set video.decoder=pyav, which reads it."
    return VideoError(f"Cannot read the video {video}: {error}. {advice}", error.fault)


def read_clip(video: str, config: VideoConfig) -> Clip:
    """A clip without the frame store and its guards: for a single look.

    Raises:
        VideoError: names file, reason and remedy.
    """
    try:
        source = find_source(video)
        with local_file(source, downloads(config), lambda: None) as path:
            content, probed = _examined(path, lambda: None)
            return replace(decode_clip(str(path), clip_key(content, config), config, probed), video=video)
    except VideoError as error:
        reason = error
    # Raised out here, unchained: a traceback that reaches into a decoder would keep its buffers alive.
    raise refused(video, reason)


class Preparer:
    """Prepares one clip at a time, in the calling process."""

    def __init__(
        self, config: VideoConfig, allow: Allow = lambda seconds: None, tell: Tell = lambda text: None
    ) -> None:
        """
        Raises:
            ResourceError: the store's folder cannot be written.
        """
        self._config = config
        self._allow, self._tell = allow, tell
        self._store = open_store(config)
        self._downloads = downloads(config)
        self._has_waited = False
        self._notices: tuple[str, ...] = ()

    def prepare(self, video: str) -> PreparedClip:
        """Make sure that a video's clip is in the store.

        Raises:
            VideoError: names file, reason and remedy. No other video ever takes its place.
            ResourceError: the store cannot be used.
        """
        clip, was_decoded = self._clip(video)
        return PreparedClip(clip.key, video, clip.frames.shape, clip.duration_s, was_decoded, self._notices)

    def clip(self, video: str) -> Clip:
        """The clip itself, prepared if need be; raises as `prepare` does."""
        return self._clip(video)[0]

    def _clip(self, video: str) -> tuple[Clip, bool]:
        self._has_waited, self._notices = False, ()
        try:
            source = find_source(video)
            noted_as = source_id(source)
            if clip := self._noted(noted_as, video):
                return clip, False
            with self._alone(noted_as, video):  # several processes would fetch a remote file several times
                if clip := self._noted(noted_as, video):
                    return clip, False  # another process was faster
                return self._read(source, noted_as)
        except VideoError as error:
            reason = error
        # Raised out here, unchained: a traceback that reaches into a decoder would keep its buffers alive.
        raise refused(video, reason)

    def _noted(self, noted_as: str, video: str) -> Clip | None:
        """The clip of a source whose content is known."""
        content = self._store.content_of(noted_as)
        return self._store.get(clip_key(content, self._config), video) if content else None

    def _read(self, source: Source, noted_as: str) -> tuple[Clip, bool]:
        """The content is noted once it has become a clip: a copy that was damaged on its way never stands for it."""
        with local_file(source, self._downloads, self._still_busy) as path:
            content, probed = _examined(path, self._still_busy)
            self._notices = tuple(probed.notices)
            clip, was_decoded = self._decoded_once(source, path, clip_key(content, self._config), probed)
        self._store.note_content(noted_as, content)
        return clip, was_decoded

    def _decoded_once(self, source: Source, path: Path, key: str, probed: VideoProbe) -> tuple[Clip, bool]:
        with self._alone(key, source.video):
            stored = self._store.get(key, source.video)  # of an equal file
            self._allow(self._config.deadline_s + self._config.deadline_per_video_s * probed.duration_s)
            clip = stored or replace(decode_clip(str(path), key, self._config, probed), video=source.video)
            _check_unchanged(source)
            if stored is None:
                self._store.put(clip)
            return clip, stored is None

    @contextmanager
    def _alone(self, key: str, video: str) -> Iterator[None]:
        """While no other process does the same. A video waits once, at most as long as an ordinary one may take to
        read: a longer one is then read twice, and none is lost to a process that is stuck."""
        patience_s = 0.0 if self._has_waited else self._config.deadline_s
        allow = partial(self._allow, patience_s + self._config.deadline_s)
        with self._store.lock(key, patience_s, allow, lambda text: self._tell(f"{video} {text}")) as has_waited:
            self._has_waited |= has_waited
            self._still_busy()
            yield

    def _still_busy(self) -> None:
        self._allow(self._config.deadline_s)


def source_id(source: Source) -> str:
    """Under which a store notes the content of a file that is in its place."""
    return blake3(f"{READING} {source.identity}".encode()).hexdigest()


def clip_key(content: str, config: VideoConfig) -> str:
    """Hash of a file's content and of the settings that select and resize: equal keys mean equal clips, at any path."""
    settings: tuple[object, ...] = (
        config.sampling,
        config.fps,
        config.max_frames,
        config.min_pixels,
        config.max_pixels,
        config.total_pixels,
        config.size_multiple,
    )
    # Equal to what it was before these settings were there.
    settings += (config.pair_tokens,) if config.pair_tokens else ()
    settings += (config.decoder,) if config.decoder != "pyav" else ()
    return blake3(repr((PREPARATION, content, settings)).encode()).hexdigest(length=16)


def _examined(path: Path, on_progress: Callable[[], None]) -> tuple[str, VideoProbe]:
    """Hash of a file's content, and what its packets promise.

    Of a kind that was read otherwise before it is another hash, so that what was kept of it then is not found again.
    """
    content, probed = content_hash(path, on_progress), probe(str(path))
    return content if probed.is_plain else blake3(f"{READING} {content}".encode()).hexdigest(), probed


def _check_unchanged(source: Source) -> None:
    """Else what was read would be kept under the name of what was there before."""
    if find_source(source.video) != source:
        raise VideoError("it changed while it was read", VideoFault.CORRUPT)


def downloads(config: VideoConfig) -> LimitedFolder:
    """Where local copies of remote videos are."""
    folder = Path(config.store_dir) / "downloads"
    return LimitedFolder(folder, int(config.download_gib * GIB), ACCESS[config.store_mode])
