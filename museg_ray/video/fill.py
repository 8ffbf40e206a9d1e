"""Fills the frame store with many clips, without Ray: several guarded readers, each in a thread of its own."""

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Thread

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.video.prepare import PreparedClip, Tell
from museg_ray.video.reader import GuardedReader

Result = tuple[str, PreparedClip | VideoError]
"""A video and what became of it."""


def prepare_all(videos: Sequence[str], config: VideoConfig, num_readers: int, tell: Tell) -> Iterator[Result]:
    """Prepare every video, and give each when it is done, in that order.

    Args:
        tell: is told, from other threads, of a process elsewhere that is waited for.

    Raises:
        ResourceError: the frame store cannot be used, or no reader starts.
    """
    waiting: SimpleQueue[str | None] = SimpleQueue()
    done: SimpleQueue[Result | BaseException] = SimpleQueue()
    for video in (*videos, *[None] * num_readers):
        waiting.put(video)
    for _ in range(num_readers):
        # Daemons: a Ctrl-C ends the process at once, and the readers' children with it.
        Thread(target=_work, args=(waiting, done, GuardedReader(config, tell)), daemon=True).start()
    for _ in videos:
        result = done.get()
        if isinstance(result, BaseException):
            raise result
        yield result


def _work(
    waiting: "SimpleQueue[str | None]", done: "SimpleQueue[Result | BaseException]", reader: GuardedReader
) -> None:
    while (video := waiting.get()) is not None:
        try:
            done.put((video, reader.prepare(video)))
        except VideoError as error:
            done.put((video, error))
        except BaseException as error:  # else whoever waits for the video would wait for ever
            done.put(error)
    reader.close()
