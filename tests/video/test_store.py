"""The frame store: what it gives back, after whatever happened to its files."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from museg_ray.errors import ResourceError
from museg_ray.files import partial_path
from museg_ray.types import Clip
from museg_ray.video.store import GIB, FrameStore
from tests.video.conftest import disk_fills_up, lock_once

KEY = "0123456789abcdef" * 2
PAGE_BYTES = 4096


def a_clip(key: str = KEY, num_frames: int = 4, height: int = 28, width: int = 56, seed: int = 0) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    return Clip(key, "video.mp4", frames, np.arange(num_frames, dtype=np.float32) / 3, num_frames / 3)


def assert_equal(clip: Clip | None, expected: Clip) -> None:
    assert clip is not None and (clip.key, clip.duration_s) == (expected.key, expected.duration_s)
    np.testing.assert_array_equal(clip.frames, expected.frames)
    np.testing.assert_array_equal(clip.times_s, expected.times_s)
    assert (clip.frames.dtype, clip.times_s.dtype) == (np.uint8, np.float32)


def entries(folder: Path) -> set[str]:
    return {path.name for path in (folder / "clips").iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    return FrameStore(tmp_path, 1)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Clip]:
    """A store's folder, and the bytes and the clip of its one entry."""
    folder = tmp_path_factory.mktemp("damaged")
    FrameStore(folder, 1).put(a_clip())
    return folder, (folder / "clips" / f"{KEY}.arrow").read_bytes(), a_clip()


@pytest.mark.parametrize("shape", [(2, 28, 28), (4, 28, 5600), (448, 28, 28), (6, 308, 280)])
def test_a_clip_comes_back_as_it_was(store: FrameStore, shape: tuple[int, int, int]) -> None:
    store.put(a_clip(KEY, *shape))
    assert_equal(store.get(KEY, "video.mp4"), a_clip(KEY, *shape))
    assert store.get("f" * 32, "video.mp4") is None


def test_frames_that_are_no_plain_array_are_kept_too(store: FrameStore) -> None:
    clip = a_clip()
    turned = Clip(KEY, clip.video, clip.frames[:, ::-1].swapaxes(1, 2), clip.times_s, clip.duration_s)
    store.put(turned)
    assert_equal(store.get(KEY, clip.video), turned)


def test_equal_files_share_an_entry_under_the_callers_names(store: FrameStore) -> None:
    store.put(a_clip())
    for video in ("one.mp4", "s3://bucket/two.mp4"):
        clip = store.get(KEY, video)
        assert clip is not None and clip.video == video


def test_an_entry_is_an_arrow_stream(store: FrameStore, tmp_path: Path) -> None:
    clip = a_clip()
    store.put(clip)
    with pa.ipc.open_stream(tmp_path / "clips" / f"{KEY}.arrow") as stream:
        table = stream.read_all()
    assert table.column_names == ["frame", "time_s"] and len(table) == len(clip.frames)
    assert table["time_s"].to_pylist() == pytest.approx(clip.times_s.tolist())
    assert b"".join(table["frame"].to_pylist()) == clip.frames.tobytes()


def test_frames_lie_in_the_mapped_file_and_cannot_be_written(store: FrameStore, tmp_path: Path) -> None:
    store.put(a_clip())
    clip = store.get(KEY, "video.mp4")
    assert clip is not None
    address = clip.frames.__array_interface__["data"][0]
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    (path,) = [
        fields[5] for fields in maps if int(fields[0].split("-")[0], 16) <= address < int(fields[0].split("-")[1], 16)
    ]
    assert path == str(tmp_path / "clips" / f"{KEY}.arrow")
    for array in (clip.frames, clip.times_s):
        assert not array.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_many_clips_held_cost_no_open_files(store: FrameStore) -> None:
    store.put(a_clip())
    before = len(os.listdir("/proc/self/fd"))
    held = [store.get(KEY, "video.mp4") for _ in range(50)]
    assert len(held) == 50 and len(os.listdir("/proc/self/fd")) <= before + 2


def test_an_entry_that_was_evicted_stays_readable_where_it_is_mapped(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 100_000 / GIB)
    first = a_clip("a" * 32, height=56, width=140)
    store.put(first)
    mapped = store.get(first.key, "video.mp4")
    for letter in "bcd":
        store.put(a_clip(letter * 32, height=56, width=140))
    assert store.get(first.key, "video.mp4") is None
    assert_equal(mapped, first)


def test_a_clip_in_use_outlives_others(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 350_000 / GIB)  # of 94 kB each
    for letter in "abcde":
        store.put(a_clip(letter * 32, height=56, width=140))
        assert store.get("a" * 32, "video.mp4") is not None
    assert entries(tmp_path) == {f"{letter * 32}.arrow" for letter in "ade"}


def test_a_clip_larger_than_the_store_is_there_once(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 1000 / GIB)
    store.put(a_clip())
    assert_equal(store.get(KEY, "video.mp4"), a_clip())


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def zeroed(content: bytes, place: int) -> bytes:
    start = place // PAGE_BYTES * PAGE_BYTES
    return content[:start] + bytes(len(content[start : start + PAGE_BYTES])) + content[start + PAGE_BYTES :]


DAMAGES: dict[str, Any] = {
    "flipped": flipped,
    "zeroed": zeroed,
    "cut": lambda content, place: content[:place],
    "cut at the front": lambda content, place: content[place + 1 :],
    "doubled": lambda content, place: content + content[: place + 1],
    "holed": lambda content, place: content[:place] + bytes(len(content) - place),
}


@given(st.sampled_from(sorted(DAMAGES)), st.floats(0, 1, exclude_max=True))
@example("cut", 0.0)
@example("flipped", 0.99999)
@example("holed", 0.0)
@example("holed", 0.99999)
def test_a_damaged_entry_is_none_and_is_rebuilt(entry: tuple[Path, bytes, Clip], damage: str, where: float) -> None:
    folder, content, clip = entry
    path = folder / "clips" / f"{KEY}.arrow"
    damaged = DAMAGES[damage](content, int(where * len(content)))
    path.write_bytes(damaged)
    store = FrameStore(folder, 1)
    found = store.get(KEY, clip.video)
    assert (found is None) == (damaged != content) == (not path.exists())
    if found is not None:  # a cut at the very end, zeros that were zero
        assert_equal(found, clip)
    store.put(clip)
    assert path.read_bytes() == content
    assert_equal(store.get(KEY, clip.video), clip)


def test_damage_after_the_first_look_is_seen(store: FrameStore, tmp_path: Path) -> None:
    store.put(a_clip())
    path = tmp_path / "clips" / f"{KEY}.arrow"
    damaged = flipped(path.read_bytes(), 5000)
    path.write_bytes(damaged)
    os.utime(path, (1, 1))
    assert store.get(KEY, "video.mp4") is None


def test_partial_files_are_no_entries(store: FrameStore, tmp_path: Path) -> None:
    store.put(a_clip())
    path = tmp_path / "clips" / f"{KEY}.arrow"
    path.rename(partial_path(path))
    assert store.get(KEY, "video.mp4") is None


KILL_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
import numpy as np, pyarrow
from museg_ray.types import Clip
from museg_ray.video.store import FrameStore

pyarrow.array(np.zeros(4, np.float32), pyarrow.float32())  # imports more when first called
folder = Path(sys.argv[1])
store = FrameStore(folder, 1)
clip = Clip(sys.argv[2], "v", np.ones((4, 28, 56, 3), np.uint8), np.zeros(4, np.float32), 2.0)

def kill_after(steps):
    def count(frame, event, argument):
        nonlocal steps
        steps -= "museg_ray" in frame.f_code.co_filename or event == "c_call"
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)

for steps in range(10_000):
    pid = os.fork()
    if not pid:
        kill_after(steps)
        store.put(clip)
        sys.setprofile(None)
        os._exit(0)
    killed = os.waitpid(pid, 0)[1] != 0
    found = [path for path in (folder / "clips").iterdir() if not path.name.endswith(".partial")]
    print(steps, killed, len(found), flush=True)
    for path in found:
        path.rename(folder / f"{steps}.found")
    if not killed:
        break
"""


def test_a_process_killed_at_any_step_of_a_put_leaves_all_or_nothing(tmp_path: Path, store: FrameStore) -> None:
    script = [sys.executable, "-c", KILL_AT_EVERY_STEP, str(tmp_path), KEY]
    lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    outcomes = [line.split() for line in lines]
    assert len(outcomes) > 50 and outcomes[-1][1:] == ["False", "1"]
    assert {num_found for _, _, num_found in outcomes} == {"0", "1"}
    whole = (tmp_path / f"{outcomes[-1][0]}.found").read_bytes()
    for found in tmp_path.glob("*.found"):
        assert found.read_bytes() == whole
    assert store.get(KEY, "video.mp4") is None  # only partial files are left
    store.put(a_clip())
    assert_equal(store.get(KEY, "video.mp4"), a_clip())


@pytest.mark.parametrize("room_bytes", [0, 100, 5000, 19_000])
def test_a_disk_that_fills_up_is_named_and_leaves_nothing(store: FrameStore, tmp_path: Path, room_bytes: int) -> None:
    with disk_fills_up(room_bytes), pytest.raises(ResourceError, match=r"Free space there, or set video\.store_dir"):
        store.put(a_clip())
    assert not entries(tmp_path) and store.get(KEY, "video.mp4") is None
    store.put(a_clip())
    assert_equal(store.get(KEY, "video.mp4"), a_clip())


def test_a_full_disk_leaves_no_partial_notes(store: FrameStore, tmp_path: Path) -> None:
    with disk_fills_up(10), pytest.raises(ResourceError):
        store.note_content("f" * 64, "a" * 64)
    assert not list((tmp_path / "sources").iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ResourceError, match=r"file/frames cannot be used: Not a directory"):
        FrameStore(tmp_path / "file" / "frames", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_entries_of_a_folder_that_cannot_be_written_are_read(tmp_path: Path, store: FrameStore) -> None:
    store.put(a_clip())
    folders = [tmp_path, *(tmp_path / part for part in ("clips", "sources", "locks"))]
    try:
        for folder in folders:
            folder.chmod(0o500)
        assert_equal(FrameStore(tmp_path, 1).get(KEY, "video.mp4"), a_clip())
        with pytest.raises(ResourceError, match="Permission denied"):
            store.put(a_clip("f" * 32))
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_store_deleted_while_in_use_says_so_and_a_new_one_works(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "store", 1)
    store.put(a_clip())
    mapped = store.get(KEY, "video.mp4")
    shutil.rmtree(tmp_path / "store")
    assert store.get(KEY, "video.mp4") is None and store.content_of("f" * 64) is None
    for use in (lambda: store.put(a_clip()), lambda: store.note_content("f" * 64, "a"), lambda: lock_once(store, KEY)):
        with pytest.raises(ResourceError, match="No such file"):
            use()
    assert_equal(mapped, a_clip())
    FrameStore(tmp_path / "store", 1).put(a_clip())
    assert_equal(store.get(KEY, "video.mp4"), a_clip())


def test_an_entry_evicted_by_another_process_at_once_is_no_error(
    store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def renamed_and_evicted(path: Path, target: Path) -> Path:
        rename(path, target).unlink()
        return target

    monkeypatch.setattr(Path, "replace", renamed_and_evicted)
    store.put(a_clip())
    assert store.get(KEY, "video.mp4") is None


def test_a_path_may_hold_spaces_and_any_letters(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "кадры и 画面 #1 %20", 1)
    store.put(a_clip())
    store.note_content("f" * 64, "a" * 64)
    assert_equal(store.get(KEY, "видео.mp4"), a_clip())


def test_threads_may_share_a_store(tmp_path: Path) -> None:
    store = FrameStore(tmp_path, 60_000 / GIB)  # three fit: they are evicted all the time
    clips = [a_clip(letter * 32, seed=seed) for seed, letter in enumerate("abcdef")]

    def use(number: int) -> None:
        clip = clips[number % 6]
        if found := store.get(clip.key, clip.video):
            assert_equal(found, clip)
        else:
            store.put(clip)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(use, range(400)))


def test_a_content_hash_is_noted(store: FrameStore, tmp_path: Path) -> None:
    assert store.content_of("1" * 64) is None
    store.note_content("1" * 64, "a" * 64)
    assert store.content_of("1" * 64) == FrameStore(tmp_path, 1).content_of("1" * 64) == "a" * 64


BAD_NOTES = {
    "empty": b"",
    "short": b"a" * 63,
    "long": b"a" * 64 + b"\0",
    "zeros": bytes(64),
    "no ASCII": b"\xff" * 64,
    "no hash": b"x" * 64,
}


@pytest.mark.parametrize("note", BAD_NOTES.values(), ids=BAD_NOTES)
def test_a_damaged_note_is_none(store: FrameStore, tmp_path: Path, note: bytes) -> None:
    """Two notes that a lost write left alike would make two videos one."""
    store.note_content("1" * 64, "a" * 64)
    (tmp_path / "sources" / ("1" * 64)).write_bytes(note)
    assert store.content_of("1" * 64) is None
