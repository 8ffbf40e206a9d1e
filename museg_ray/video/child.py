"""The reader process: prepares what its parent asks for, one video at a time, until the pipe closes.

parent ─▶ child   the settings, then paths or URLs
child  ─▶ parent  a float: the result may take so many seconds from now; the first of all says that it has started
                  a text: what there is to tell the user meanwhile
                  a PreparedClip, or the error
"""

from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from museg_ray.config.schema import VideoConfig
from museg_ray.ending import end_with_parent
from museg_ray.errors import MusegError, VideoError, VideoFault
from museg_ray.video.prepare import Preparer, refused


def serve(descriptor: int) -> None:
    """Answer the requests that come through an inherited file descriptor."""
    # A hanging decoder never sees the pipe close: the kernel ends this process with its parent.
    end_with_parent()
    torch.set_num_threads(1)
    # Gone with its parent, or with the pipe that the parent has closed.
    with suppress(EOFError, OSError), Connection(descriptor) as parent:
        _serve(parent)


def _serve(parent: Connection) -> None:
    config: VideoConfig = parent.recv()
    try:
        preparer = Preparer(config, lambda seconds: parent.send(float(seconds)), parent.send)
    except MusegError as error:  # the store cannot be opened
        parent.send(error)
        return
    parent.send(float(config.deadline_s))
    while True:
        parent.send(_answer(preparer, parent.recv()))


def _answer(preparer: Preparer, video: str) -> object:
    try:
        return preparer.prepare(video)
    except MusegError as error:
        return error
    except (EOFError, ConnectionError):  # the pipe's
        raise
    except Exception as error:  # one that nobody thought of; the parent could tell an exit code alone
        return refused(video, VideoError(f"{type(error).__name__}: {error}", VideoFault.CRASHED))
