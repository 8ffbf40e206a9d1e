"""The guarded reader: whatever its child does, one video is lost at most, and no process stays."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import psutil
import pytest

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import ResourceError, VideoError, VideoFault
from museg_ray.video import reader as reader_module
from museg_ray.video.prepare import PreparedClip, open_store, read_clip, source_id
from museg_ray.video.reader import GuardedReader
from museg_ray.video.source import find_source
from museg_ray.video.store import GIB
from tests.video.conftest import Configure, alone, render_video, small_config, variant, wait_until

DEADLINE_S = 2.0
MIB = 1024**2
ANSWER = PreparedClip("k" * 32, "v.mp4", (4, 28, 28, 3), 2.0, True)
FAKE_CHILD = f"""
import os, sys, time
from multiprocessing.connection import Connection
parent = Connection(int(sys.argv[1]))
parent.recv_bytes()  # the settings
parent.send({DEADLINE_S})  # it has started
def answer():
    parent.send_bytes({bytes(ForkingPickler.dumps(ANSWER))!r})
"""
ANSWERS_ALL = FAKE_CHILD + "while parent.recv(): answer()"
PARENT = """
import sys, time
from museg_ray.config.schema import VideoConfig
from museg_ray.video import reader
from museg_ray.video.reader import GuardedReader
guarded = GuardedReader(VideoConfig(store_dir=sys.argv[1], max_pixels=140 * 28, min_pixels=28 * 28))
guarded.prepare(sys.argv[2])
print(guarded.pid, flush=True)
for video in sys.argv[3:]:
    guarded.prepare(video)
time.sleep(600)
"""


def has_ended(pid: int | None) -> bool:
    """Gone, or a zombie that whoever adopted it has not looked at."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def fault_of(reader: GuardedReader, video: Path | str) -> tuple[VideoFault, str]:
    with pytest.raises(VideoError) as caught:
        reader.prepare(str(video))
    return caught.value.fault, str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def shared_reader(folder: Path, told: list[str]) -> Iterator[GuardedReader]:
    """A child takes seconds to start."""
    reader = GuardedReader(small_config(folder / "store", deadline_s=DEADLINE_S), told.append)
    reader.prepare(str(render_video(folder / "first.mp4", seconds=2)))
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def fresh() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def videos(folder: Path, shared_reader: GuardedReader, fresh: Iterator[int]) -> list[Path]:
    """Three that no store has yet."""
    return [variant(folder / "first.mp4", next(fresh)) for _ in range(3)]


def test_it_prepares_what_a_plain_look_gives(shared_reader: GuardedReader, folder: Path, videos: list[Path]) -> None:
    config = small_config(folder / "store")
    pid = shared_reader.pid
    for video in videos:
        prepared, plain = shared_reader.prepare(str(video)), read_clip(str(video), config)
        assert prepared.was_decoded and prepared.shape == plain.frames.shape
        clip = open_store(config).get(prepared.key, str(video))
        assert clip is not None and (clip.frames == plain.frames).all()
    assert not shared_reader.prepare(str(videos[0])).was_decoded
    assert shared_reader.pid == pid


@pytest.mark.timeout(60)
def test_a_fault_is_told_and_leaves_the_child_as_it_was(
    shared_reader: GuardedReader, tmp_path: Path, videos: list[Path]
) -> None:
    pid, start_s = shared_reader.pid, time.monotonic()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    for name, fault in (
        ("absent.mp4", VideoFault.MISSING),
        ("link.mp4", VideoFault.MISSING),
        ("loop.mp4", VideoFault.MISSING),
        ("pipe.mp4", VideoFault.UNREACHABLE),
        (".", VideoFault.NOT_A_VIDEO),
        ("text.mp4", VideoFault.NOT_A_VIDEO),
    ):
        found, message = fault_of(shared_reader, tmp_path / name)
        assert found is fault and str(tmp_path / name) in message, (name, found)
    assert time.monotonic() - start_s < DEADLINE_S, "none may wait for a deadline"
    assert shared_reader.prepare(str(videos[0])).was_decoded
    assert shared_reader.pid == pid


def test_a_reader_that_hangs_is_killed_at_its_deadline(shared_reader: GuardedReader, videos: list[Path]) -> None:
    pid = shared_reader.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    start_s = time.monotonic()
    fault, message = fault_of(shared_reader, videos[0])
    assert DEADLINE_S <= time.monotonic() - start_s < DEADLINE_S + 30
    assert fault is VideoFault.TIMEOUT and str(videos[0]) in message and "timed out after 2 s" in message
    assert has_ended(pid) and shared_reader.pid is None
    assert shared_reader.prepare(str(videos[1])).was_decoded


@pytest.mark.timeout(60)
def test_a_video_whose_lock_a_stopped_process_holds_is_read(
    shared_reader: GuardedReader, told: list[str], folder: Path, videos: list[Path]
) -> None:
    """The deadline is for the reading, and starts behind a wait that ends by itself."""
    noted_as = source_id(find_source(str(videos[0])))
    told.clear()
    with alone(open_store(small_config(folder / "store")), noted_as):
        assert shared_reader.prepare(str(videos[0])).was_decoded
    assert len(told) == 1 and told[0].startswith(str(videos[0])) and f"process {os.getpid()} on" in told[0]


def test_a_child_that_died_is_replaced_and_the_video_read(shared_reader: GuardedReader, videos: list[Path]) -> None:
    pid = shared_reader.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert shared_reader.prepare(str(videos[0])).was_decoded
    assert shared_reader.pid not in (None, pid)


def run_child(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(reader_module, "RUN_CHILD", script)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> Iterator[GuardedReader]:
    """A reader whose children start at once and answer whatever they are asked."""
    run_child(monkeypatch, ANSWERS_ALL)
    reader = GuardedReader(configure(deadline_s=DEADLINE_S, reader_videos=3))
    yield reader
    reader.close()


def test_a_video_that_ends_its_reader_twice_is_told(fake: GuardedReader, monkeypatch: pytest.MonkeyPatch) -> None:
    run_child(monkeypatch, FAKE_CHILD + "parent.recv(); os._exit(9)")
    fault, message = fault_of(fake, "poison.mp4")
    assert fault is VideoFault.CRASHED and "poison.mp4" in message and "twice (exit code 9)" in message
    run_child(monkeypatch, ANSWERS_ALL)
    assert fake.prepare("next.mp4") == ANSWER


def test_a_video_that_ends_its_reader_by_a_signal_is_told(fake: GuardedReader, monkeypatch: pytest.MonkeyPatch) -> None:
    run_child(monkeypatch, FAKE_CHILD + "parent.recv(); os.abort()")
    fault, message = fault_of(fake, "poison.mp4")
    assert fault is VideoFault.CRASHED and "twice (exit code -6)" in message


def test_a_child_that_dies_once_costs_nothing(
    fake: GuardedReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_child(
        monkeypatch,
        FAKE_CHILD
        + f"""
parent.recv()
try:
    open({str(tmp_path / "died")!r}, "x")
except FileExistsError:
    answer()
""",
    )
    assert fake.prepare("v.mp4") == ANSWER


def test_a_child_is_replaced_after_so_many_videos(fake: GuardedReader) -> None:
    pids = []
    for _ in range(7):
        fake.prepare("v.mp4")
        pids.append(fake.pid)
    assert [pid is None for pid in pids] == [False, False, True, False, False, True, False]
    assert pids[0] == pids[1] != pids[3] == pids[4] != pids[6]
    assert has_ended(pids[0]) and has_ended(pids[3])


TAKES_MEMORY = "\nparent.recv(); held = b'x' * (120 << 20); time.sleep({}); answer(); parent.recv()"


def test_a_child_that_holds_too_much_is_replaced_after_its_video(
    monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    run_child(monkeypatch, FAKE_CHILD + TAKES_MEMORY.format(0))
    reader = GuardedReader(configure(reader_gib=100 * MIB / GIB))
    assert reader.prepare("v.mp4") == ANSWER and reader.pid is None
    reader = GuardedReader(configure(reader_gib=1000 * MIB / GIB))
    assert reader.prepare("v.mp4") == ANSWER and reader.pid is not None
    reader.close()


def test_a_video_that_fills_the_memory_is_told(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    run_child(monkeypatch, FAKE_CHILD + TAKES_MEMORY.format(60))
    reader = GuardedReader(configure(reader_gib=40 * MIB / GIB))
    fault, message = fault_of(reader, "huge.mp4")
    assert fault is VideoFault.CRASHED and "more than 0.078125 GiB of memory, video.reader_gib" in message
    assert reader.pid is None


def test_a_deadline_that_the_child_extends_is_kept(fake: GuardedReader, monkeypatch: pytest.MonkeyPatch) -> None:
    extends = "\nparent.recv(); answer()\nparent.recv(); parent.send(5.0); time.sleep(3); answer()"
    hangs = "\nparent.recv(); parent.send(1.0); time.sleep(60)"
    run_child(monkeypatch, FAKE_CHILD + extends + hangs)
    fake.prepare("first.mp4")
    assert fake.prepare("slow.mp4") == ANSWER
    start_s = time.monotonic()
    fault, message = fault_of(fake, "hangs.mp4")
    assert fault is VideoFault.TIMEOUT and "timed out after 1 s" in message
    assert time.monotonic() - start_s < 30


@pytest.mark.timeout(40)
def test_the_first_video_of_a_child_has_no_longer_deadline(
    fake: GuardedReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only starting may take longer. Else a dead storage, where every video hangs, costs minutes each."""
    run_child(
        monkeypatch,
        """
import sys, time
from museg_ray.video import prepare
from museg_ray.video.child import serve
prepare.find_source = lambda video: time.sleep(600)
serve(int(sys.argv[1]))
""",
    )
    start_s = time.monotonic()
    assert fault_of(fake, "hangs.mp4")[0] is VideoFault.TIMEOUT
    assert time.monotonic() - start_s < DEADLINE_S + 20


@pytest.mark.parametrize("script", ["raise SystemExit(3)", "import a_module_that_is_missing"])
def test_a_reader_that_cannot_start_is_not_the_videos_fault(
    fake: GuardedReader, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    run_child(monkeypatch, script)
    with pytest.raises(ResourceError):
        fake.prepare("v.mp4")


def test_a_store_that_cannot_be_used_is_told_and_not_the_videos_fault(folder: Path, videos: list[Path]) -> None:
    (folder / "file").write_text("no folder")
    reader = GuardedReader(small_config(folder / "file" / "store"))
    with pytest.raises(ResourceError, match="Not a directory"):
        reader.prepare(str(videos[0]))
    reader.close()


def test_close_ends_the_child_and_the_reader_can_be_used_again(fake: GuardedReader) -> None:
    fake.prepare("v.mp4")
    pid = fake.pid
    fake.close()
    fake.close()
    assert has_ended(pid) and fake.pid is None
    assert fake.prepare("v.mp4") == ANSWER


def test_a_child_ends_when_its_reader_is_forgotten(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    run_child(monkeypatch, ANSWERS_ALL)
    reader = GuardedReader(configure())
    reader.prepare("v.mp4")
    pid = reader.pid
    del reader
    wait_until(lambda: has_ended(pid), 10)


def test_no_child_holds_the_pipe_of_another(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    """Else a child would not see that its parent is gone."""
    run_child(monkeypatch, ANSWERS_ALL)
    readers = [GuardedReader(configure()) for _ in range(3)]
    for reader in readers:
        reader.prepare("v.mp4")
    sockets = [
        {link for link in map(os.readlink, Path(f"/proc/{reader.pid}/fd").iterdir()) if link.startswith("socket")}
        for reader in readers
    ]
    assert not sockets[0] & sockets[1] and not sockets[1] & sockets[2] and not sockets[0] & sockets[2]
    for reader in readers:
        reader.close()


def start_parent(config: VideoConfig, *videos: Path) -> "subprocess.Popen[str]":
    """A process with a reader of its own, which says its child's id once it has read the first video."""
    command = [sys.executable, "-c", PARENT, config.store_dir, *map(str, videos)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_child_ends_with_a_parent_that_is_killed(folder: Path, videos: list[Path]) -> None:
    config = small_config(folder / "store-killed")
    videos.append(render_video(folder / "long.mp4", fps=24, seconds=30))
    with start_parent(config, *videos[:1]) as idle, start_parent(config, *videos) as working:
        pids = [int(parent.stdout.readline()) for parent in (idle, working) if parent.stdout]
        os.kill(pids[0], signal.SIGSTOP)  # it will never see the pipe close
        for parent in (idle, working):
            parent.kill()
    try:
        wait_until(lambda: all(map(has_ended, pids)), 10)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    store = open_store(config)
    for entry in (folder / "store-killed" / "clips").glob("*.arrow"):
        assert store.get(entry.stem, "v.mp4") is not None


def test_an_error_that_nobody_thought_of_is_told_and_the_child_goes_on(
    fake: GuardedReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_child(
        monkeypatch,
        """
import sys
from museg_ray.video.child import serve
from museg_ray.video.prepare import Preparer
Preparer.prepare = lambda self, video: {}["no such key"]
serve(int(sys.argv[1]))
""",
    )
    fault, message = fault_of(fake, "odd.mp4")
    assert fault is VideoFault.CRASHED and "KeyError: 'no such key'" in message
    pid = fake.pid
    assert pid is not None and fault_of(fake, "odd.mp4")[0] is VideoFault.CRASHED and fake.pid == pid
