"""Locks by key: one works and the others wait, though never for long."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import gethostname
from typing import IO, Any

import pytest

from museg_ray.errors import ResourceError
from museg_ray.video import lock as lock_module
from museg_ray.video.store import FrameStore
from tests.video.conftest import alone, lock_once

KEY = "0123456789abcdef" * 2
HOLDER = """
import sys, time
from pathlib import Path
from museg_ray.video.folder import PRIVATE
from museg_ray.video.lock import file_lock
with file_lock(Path(sys.argv[1]), PRIVATE, 0, float, print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return FrameStore(tmp_path, 1)


def locks(folder: Path) -> list[str]:
    return [path.name for path in (folder / "locks").iterdir()]


def other_holder(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, str(folder / "locks" / KEY)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


def leave_lock(folder: Path, record: str) -> IO[Any]:
    """As on a server that keeps the lock of whoever the file names."""
    file = (folder / "locks" / KEY).open("w")
    file.write(record)
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_a_lock_is_held_by_one_and_leaves_no_file(store: FrameStore, tmp_path: Path) -> None:
    other = FrameStore(tmp_path, 1)
    with alone(store, KEY) as has_waited:
        assert not has_waited and locks(tmp_path) == [KEY]
        assert f"process {os.getpid()} on {gethostname()}" in lock_once(other, KEY)
        assert locks(tmp_path) == [KEY], "who has not got it leaves it alone"
    assert lock_once(other, KEY) == "" and not locks(tmp_path)


def test_every_key_has_a_lock_of_its_own(store: FrameStore) -> None:
    with alone(store, KEY):
        for other in (KEY[:-1] + "0", "01" + "f" * 30):
            assert lock_once(store, other) == ""


def wait_for_a_lock_held(store: FrameStore, held_s: float) -> tuple[str, int]:
    """What is told of a wait of so long, and how often it was allowed for."""
    begun, calls = threading.Event(), []

    def note() -> None:
        calls.append(None)
        begun.set()

    with ThreadPoolExecutor(1) as threads:
        with alone(store, KEY):
            waiting = threads.submit(lock_once, store, KEY, 60, note)
            assert begun.wait(60)
            time.sleep(held_s)
            assert not waiting.done()
        return waiting.result(), len(calls)


def test_a_lock_is_waited_for_once_and_not_named_where_it_was_short(store: FrameStore) -> None:
    assert wait_for_a_lock_held(store, 0.2) == ("", 1)


def test_a_holder_that_was_waited_for_long_is_named(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "NAMED_AFTER_S", 0.1)
    waited, _ = wait_for_a_lock_held(store, 0.2)
    assert waited == f"waits for process {os.getpid()} on {gethostname()}, which has its lock, for 60 s at most"


def test_a_stopped_holder_is_waited_for_no_longer_than_allowed_and_keeps_its_lock(
    store: FrameStore, tmp_path: Path
) -> None:
    with other_holder(tmp_path) as holder:
        holder.send_signal(signal.SIGSTOP)
        start_s = time.monotonic()
        assert f"process {holder.pid} on" in lock_once(store, KEY, 0.5)
        assert 0.5 <= time.monotonic() - start_s < 5 and locks(tmp_path) == [KEY]
        holder.kill()


def test_the_lock_of_a_killed_process_is_free(store: FrameStore, tmp_path: Path) -> None:
    with other_holder(tmp_path) as holder:
        holder.kill()
    assert locks(tmp_path) == [KEY]
    assert lock_once(store, KEY, 60) == "" and not locks(tmp_path)


@pytest.mark.parametrize(
    ("record", "is_waited_for"),
    [
        (f"999999999 {gethostname()} 1", False),
        (f"{os.getpid()} {gethostname()} 1", False),  # its number is another's by now
        (f"{os.getpid()} {gethostname()} {lock_module._start_of(os.getpid())}", True),
        ("999999999 elsewhere 1", True),
        ("\0\0", True),
    ],
)
def test_a_lock_that_outlives_its_process_is_not_waited_for(
    store: FrameStore, tmp_path: Path, record: str, is_waited_for: bool
) -> None:
    with leave_lock(tmp_path, record):
        start_s = time.monotonic()
        assert "and is read without it" in lock_once(store, KEY, 0.5 if is_waited_for else 60)
        waited_s = time.monotonic() - start_s
        assert waited_s >= 0.5 if is_waited_for else waited_s < 30


def test_a_failure_lets_go_of_the_lock(store: FrameStore) -> None:
    with pytest.raises(KeyError), alone(store, KEY):
        raise KeyError
    assert lock_once(store, KEY) == ""


def test_a_child_process_does_not_inherit_the_lock(store: FrameStore) -> None:
    with alone(store, KEY):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert lock_once(store, KEY) == ""
    finally:
        child.kill()
        child.wait()


def test_a_file_system_without_locks_is_named(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(ResourceError, match="No locks available"):
        lock_once(store, KEY)


def test_who_opened_a_lock_before_it_was_deleted_does_not_hold_it(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two would hold one lock: one by the old file, one by the new."""
    with leave_lock(tmp_path, "1 elsewhere 1") as old:
        lock = fcntl.flock

        def replaced_and_locked(file: Any, operation: int) -> None:
            monkeypatch.setattr(fcntl, "flock", lock)
            (tmp_path / "locks" / KEY).unlink()
            fcntl.flock(old, fcntl.LOCK_UN)
            new.append(leave_lock(tmp_path, "2 elsewhere 1"))
            lock(file, operation)

        new: list[IO[Any]] = []
        monkeypatch.setattr(fcntl, "flock", replaced_and_locked)
        assert "process 2 on elsewhere" in lock_once(store, KEY)
        assert locks(tmp_path) == [KEY]
        new[0].close()


def test_no_two_hold_a_lock_at_once_however_many_want_it(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "POLL_S", 0.0)
    inside, most = threading.Semaphore(1), []

    def hold(number: int) -> None:
        with store.lock(KEY, 60, lambda: None, lambda text: None) as has_waited:
            assert not has_waited
            most.append(inside.acquire(blocking=False))
            time.sleep(0.0002)
            inside.release()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, range(300)))
    assert len(most) == 300 and all(most)
