"""The reader process: prepares what its parent asks for, one video at a time, until the pipe closes.

parent ─▶ child   path or URL
child  ─▶ parent  a float: the result may take so many seconds from now; the first of all says that it has started
                  a PreparedClip, or the error
"""

import ctypes
import signal
from multiprocessing.connection import Connection

import torch

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import MusegError
from museg_ray.video.prepare import Preparer

PR_SET_PDEATHSIG = 1


def serve(descriptor: int) -> None:
    """Answer the requests that come through an inherited file descriptor."""
    # A hanging decoder never sees the pipe close: the kernel ends this process with its parent.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which ends this process
    torch.set_num_threads(1)
    with Connection(descriptor) as parent:
        try:
            config: VideoConfig = parent.recv()
            preparer = Preparer(config, lambda seconds: parent.send(float(seconds)))
            parent.send(float(config.deadline_s))
            while True:
                parent.send(_answer(preparer, parent.recv()))
        except MusegError as error:  # the store cannot be opened: the answer to the first request
            parent.send(error)
        except (EOFError, OSError):
            pass  # the parent has closed the pipe, or is gone


def _answer(preparer: Preparer, video: str) -> object:
    try:
        return preparer.prepare(video)
    except MusegError as error:
        return error
