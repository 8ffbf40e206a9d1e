"""How this process ends: on Ctrl-C and SIGTERM in good order, on a second one at once, and with all that it started.

1st signal ─▶ cancels the task of a run (`cancelled_by_signal`), else KeyboardInterrupt ─▶ everything is closed
2nd signal ─▶ `end_at_once`
"""

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CLOSING_S = 2.0
"""For processes that were told to end: Ray's own need about one."""
KILLED_S = 2.0
"""Until a process that was killed is gone."""

_terminal = os.dup(2)
"""Descriptor 2 may be the libraries' when there is something to say."""
_received: signal.Signals | None = None
_task: "asyncio.Task[None] | None" = None


def take_over() -> None:
    """Handle the signals of this process from now on, its main thread's; and keep all that it will start below it.

    Without the second, a process whose parent dies goes to init, where nobody could tell it for ours: workers and
    agents of a raylet that was killed live on for minutes (seen with Ray 2.60).
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    _handle_signals()


def end_with_parent() -> None:
    """Have the kernel end this process with the thread that started it, whatever either of them is doing."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def received_signal() -> signal.Signals | None:
    """The first Ctrl-C or SIGTERM, once it has come."""
    return _received


@contextmanager
def cancelled_by_signal() -> Iterator[None]:
    """Within, a first signal cancels the present task instead of breaking in wherever the process happens to be."""
    global _task
    _task = asyncio.current_task()
    assert _task is not None, "within a task"
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        _handle_signals()  # once more: Ray's C++ part has put one of its own before it, which ends in an abort
    else:  # `take_over` was not called: at least a cluster manager's signal ends the task in good order
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _task.cancel)
    try:
        yield
    finally:
        _task = None


@contextmanager
def processes_end() -> Iterator[None]:
    """No process that was started within outlives the block: those that do not end when told to are killed."""
    before = psutil.Process().children(recursive=True)
    try:
        yield
    finally:
        _end((psutil.Process.terminate, CLOSING_S), (psutil.Process.kill, KILLED_S), spared=before)


def still_living() -> list[str]:
    """What this process has started and has not ended, as `name (pid)`."""
    return [_name(process) for process in _below()]


def say(line: str) -> None:
    """One line on the terminal, from any thread; it comes before whatever may end this process without a word."""
    os.write(_terminal, f"{line}\n".encode())


def end_at_once(line: str) -> None:
    """Say so, kill all that this process has started, say what that was, and exit from wherever it is.

    The exit code is 1, or that of a signal that has come: whoever sends SIGTERM may send it to all processes of a run.
    """
    _leave_panel()
    shown = "\x1b[?25h\n" if os.isatty(_terminal) else ""  # a live panel hides the cursor
    os.write(_terminal, f"{shown}{line}\n".encode())
    killed = still_living()
    _end((psutil.Process.kill, KILLED_S))
    if killed:
        os.write(_terminal, f"Killed: {', '.join(killed)}.\n".encode())
    if left := still_living():
        os.write(_terminal, f"Still ending: {', '.join(left)}.\n".encode())
    os._exit(128 + _received if _received else 1)


def _leave_panel() -> None:
    """Nothing else of this process writes on a terminal from now on: a live panel would be drawn over what is said."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor != _terminal and os.isatty(descriptor):
            os.dup2(nowhere, descriptor)


def _handle_signals() -> None:
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number: int, _: FrameType | None) -> None:
    global _received
    signal.alarm(0)  # Ray's C++ part aborts the process 3 s after a SIGTERM that came while it started
    if _received is not None:
        end_at_once("Interrupted again: ended at once.")
    _received = signal.Signals(number)
    if _task is None:
        raise KeyboardInterrupt
    _task.get_loop().call_soon_threadsafe(_task.cancel)  # wakes a loop that waits


def _end(*ways: tuple[Callable[[psutil.Process], None], float], spared: Collection[psutil.Process] = ()) -> None:
    """One way after the other, each with the seconds that it may take, until nothing is left below this process."""
    for end, wait_s in ways:
        for process in _below(spared):
            with suppress(psutil.NoSuchProcess):
                end(process)
        deadline_s = time.monotonic() + wait_s
        while _below(spared) and time.monotonic() < deadline_s:
            time.sleep(0.02)


def _below(spared: Collection[psutil.Process] = ()) -> list[psutil.Process]:
    """All below this process but Python's own tracker of semaphores, which ends with it and clears up behind it.

    Those that have ended are taken leave of first, or they would count as living.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process not in spared and process.pid != tracker]


def _name(process: psutil.Process) -> str:
    try:
        return f"{process.name()} ({process.pid})"
    except psutil.Error:
        return f"pid {process.pid}"
