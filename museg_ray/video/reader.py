"""Prepares videos in a child process that can be killed: a decoder that hangs, crashes or leaks costs one video."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import MusegError, ResourceError, VideoError, VideoFault
from museg_ray.video.prepare import PreparedClip, Tell, refused
from museg_ray.video.store import GIB

POLL_S = 0.2
START_TIMEOUT_S = 120.0
"""For a child to import what it needs, on a busy machine."""
START_TRIES = 2
KILL_TIMEOUT_S = 10.0
RUN_CHILD = "import sys; from museg_ray.video.child import serve; serve(int(sys.argv[1]))"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _ChildDied(Exception):
    """The child ended in the middle of a video."""


class _Child:
    """A reader process and the pipe to it."""

    def __init__(self, config: VideoConfig) -> None:
        self.num_videos = 0
        self.pipe, theirs = Pipe()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # also what Ray added for a job
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", RUN_CHILD, str(theirs.fileno())]
        with theirs:
            # A group of its own: a Ctrl-C is for the parent, and the kernel ends this process with it.
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, process_group=0
            )
        self.pipe.send(config)

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds; 0 when it has ended."""
        with suppress(OSError):
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE_BYTES
        return 0

    def kill(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk ends when the disk answers
            self.process.wait(KILL_TIMEOUT_S)
        self.pipe.close()


class GuardedReader:
    """One child at a time, started when first needed. For one thread, which must live as long as the reader: the kernel
    ends the child with the thread that started it."""

    def __init__(self, config: VideoConfig, tell: Tell = lambda text: None) -> None:
        self._config, self._tell = config, tell
        self._child: _Child | None = None

    def prepare(self, video: str) -> PreparedClip:
        """Make sure that a video's clip is in the store, see `Preparer.prepare`.

        Raises:
            VideoError: the file cannot be used, took longer than its deadline, or ended its reader twice.
            ResourceError: the store cannot be used, or no reader starts.
        """
        with suppress(_ChildDied):
            return self._ask(video)
        try:
            return self._ask(video)  # a fresh child tells whether it was the video
        except _ChildDied as death:
            reason = VideoError(f"it ended the process that read it, twice ({death})", VideoFault.CRASHED)
        raise refused(video, reason)

    @property
    def pid(self) -> int | None:
        """Of the child; None while there is none."""
        return self._child.process.pid if self._child is not None else None

    def close(self) -> None:
        """End the child, also in the middle of a video."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _ask(self, video: str) -> PreparedClip:
        child = self._child = self._child or self._started_child()
        child.num_videos += 1
        try:
            child.pipe.send(video)
            answer = self._wait(child, video)
        except (EOFError, ConnectionError) as error:
            self.close()
            raise _ChildDied(f"exit code {child.process.returncode}") from error
        if self._is_spent(child):
            self.close()
        if isinstance(answer, MusegError):
            raise answer
        assert isinstance(answer, PreparedClip)
        return answer

    def _started_child(self) -> _Child:
        """A child that is ready: the deadline is for the video, and not for the start of a process.

        Raises:
            ResourceError: none starts, or the store cannot be used.
        """
        for _ in range(START_TRIES):  # a machine that is short of memory for a moment must not end a run
            reason = "there is no process to be had"
            with suppress(OSError):
                child = _Child(self._config)
                reason = self._start_fault(child)
                if not reason:
                    return child
                child.kill()
        raise ResourceError(f"No process that reads videos starts: {reason}. Look for a lack of memory.")

    def _start_fault(self, child: _Child) -> str:
        """Why a child does not start; empty when it has."""
        try:
            if not child.pipe.poll(START_TIMEOUT_S):
                return f"one is not ready after {START_TIMEOUT_S:g} s"
            answer = child.pipe.recv()
        except (EOFError, ConnectionError):
            return f"one ended with exit code {child.process.wait(KILL_TIMEOUT_S)}, its output has the reason"
        if isinstance(answer, MusegError):
            child.kill()
            raise answer
        return ""

    def _wait(self, child: _Child, video: str) -> object:
        """The child's answer.

        Raises:
            VideoError: it takes longer than it may; the child is killed.
            _ChildDied, EOFError: the child ended.
        """
        allowed_s: float = self._config.deadline_s
        end_s = time.monotonic() + allowed_s
        while time.monotonic() < end_s:
            if child.pipe.poll(POLL_S):
                answer = child.pipe.recv()
                if isinstance(answer, float):
                    allowed_s, end_s = answer, time.monotonic() + answer
                elif isinstance(answer, str):
                    self._tell(answer)
                else:
                    return answer
            elif child.resident_bytes > 2 * self._config.reader_gib * GIB:
                self.close()
                raise _ChildDied(f"more than {2 * self._config.reader_gib:g} GiB of memory, video.reader_gib")
        self.close()
        timeout = VideoError(
            f"reading it timed out after {allowed_s:g} s without a result; for slow storage or very long videos raise "
            "video.deadline_s or video.deadline_per_video_s",
            VideoFault.TIMEOUT,
        )
        raise refused(video, timeout)

    def _is_spent(self, child: _Child) -> bool:
        too_old = child.num_videos >= self._config.reader_videos
        return too_old or child.resident_bytes > self._config.reader_gib * GIB
