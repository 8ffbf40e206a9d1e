"""The size-limited folder."""

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.files import partial_path
from museg_ray.video import folder as folder_module
from museg_ray.video.folder import ABANDONED_S, STORED, LimitedFolder


@pytest.fixture(scope="module", autouse=True)
def _any_name_is_a_hash() -> Iterator[None]:
    """So that a test may call its files `a` and `b`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "STORED", re.compile(r"[^.].*"))
        yield


def add(limited: LimitedFolder, name: str, size_bytes: int = 100) -> Path:
    partial = partial_path(limited.folder / name)
    partial.write_bytes(bytes(size_bytes))
    return limited.add(partial, name)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def age(path: Path, seconds: float) -> None:
    then_s = time.time() - seconds
    os.utime(path, (then_s, then_s))


def test_the_longest_unused_leave_first(tmp_path: Path) -> None:
    limited = LimitedFolder(tmp_path, 300)
    for seconds, name in zip((30, 20, 10), "abc", strict=True):
        age(add(limited, name), seconds)
    limited.touch(tmp_path / "a", (tmp_path / "a").stat())
    add(limited, "d")
    assert names(tmp_path) == {"a", "d"}  # 90 % of the limit are kept: room for two of these


def test_use_is_no_change(tmp_path: Path) -> None:
    path = add(LimitedFolder(tmp_path, 300), "a")
    age(path, 1000)
    before = path.stat()
    LimitedFolder(tmp_path, 300).touch(path, before)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_atime > before.st_atime + 900


def test_a_file_gone_meanwhile_can_be_touched(tmp_path: Path) -> None:
    path = add(LimitedFolder(tmp_path, 300), "a")
    stat = path.stat()
    path.unlink()
    LimitedFolder(tmp_path, 300).touch(path, stat)


def test_the_newest_stays_even_where_it_alone_passes_the_limit(tmp_path: Path) -> None:
    limited = LimitedFolder(tmp_path, 300)
    add(limited, "a")
    age(add(limited, "large", 1000), 3600)  # the oldest by its times
    assert names(tmp_path) == {"large"}
    add(limited, "larger", 2000)
    assert names(tmp_path) == {"larger"}


def test_a_file_written_again_counts_once(tmp_path: Path) -> None:
    limited = LimitedFolder(tmp_path, 300)
    add(limited, "other")
    for _ in range(10):
        add(limited, "same")
    assert names(tmp_path) == {"other", "same"}


def test_what_others_left_counts(tmp_path: Path) -> None:
    before = LimitedFolder(tmp_path, 1000)
    for name in "abcdefgh":
        add(before, name)
    add(LimitedFolder(tmp_path, 300), "new")
    assert "new" in names(tmp_path) and len(names(tmp_path)) == 2


def test_what_several_processes_add_stays_near_the_limit(tmp_path: Path) -> None:
    """None of them may count its own files alone."""
    several = [LimitedFolder(tmp_path, 2000) for _ in range(4)]
    most = 0
    for number in range(100):
        add(several[number % 4], str(number))
        most = max(most, len(names(tmp_path)))
    assert most <= 25  # 20 fit


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 500), st.booleans()), max_size=20))
def test_the_limit_holds_after_every_add(steps: list[tuple[str, int, bool]]) -> None:
    with TemporaryDirectory() as folder:
        limited, used = LimitedFolder(Path(folder), 1000), []
        for name, size_bytes, is_use in steps:
            path = Path(folder) / name
            if is_use and path.exists():
                limited.touch(path, path.stat())
                used = [other for other in used if other != name] + [name]
            elif not is_use:
                add(limited, name, size_bytes)
                used = [other for other in used if other != name] + [name]
            left = names(Path(folder))
            assert sum((Path(folder) / other).stat().st_size for other in left) <= 1000
            assert not used or used[-1] in left


def test_abandoned_partial_files_leave_and_others_stay(tmp_path: Path) -> None:
    old, young = partial_path(tmp_path / "a"), partial_path(tmp_path / "b")
    for path in (old, young):
        path.write_bytes(bytes(5000))
    age(old, ABANDONED_S + 60)
    age(young, ABANDONED_S - 60)
    add(LimitedFolder(tmp_path, 300), "new")
    assert names(tmp_path) == {young.name, "new"}


def test_a_file_taken_out_is_nobodys_until_it_is_added_again(tmp_path: Path) -> None:
    limited = LimitedFolder(tmp_path, 300)
    age(add(limited, "a", 200), ABANDONED_S + 60)
    partial = partial_path(tmp_path / "a")
    assert limited.take_out("a", partial) and not limited.take_out("a", partial)
    add(LimitedFolder(tmp_path, 300), "b", 200)
    assert names(tmp_path) == {partial.name, "b"}
    limited.add(partial, "a")
    assert names(tmp_path) == {"a"}


def test_no_two_writers_share_a_partial_file(tmp_path: Path) -> None:
    """Not even two threads, or two containers of one host name, where process ids are small and equal."""
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: partial_path(tmp_path / "a"), range(8)))
    assert len({partial_path(tmp_path / "a"), *paths}) == 9


def test_threads_may_add_at_once(tmp_path: Path) -> None:
    limited = LimitedFolder(tmp_path, 500)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: add(limited, str(number)), range(200)))
    add(limited, "last")
    assert "last" in names(tmp_path) and len(names(tmp_path)) <= 5 + 8


def test_a_folder_that_is_gone_is_an_error_of_storage(tmp_path: Path) -> None:
    limited = LimitedFolder(tmp_path / "gone", 300)
    with pytest.raises(OSError):
        add(limited, "a")


def test_invariant_what_is_not_the_stores_is_neither_counted_nor_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "STORED", STORED)
    foreign = ["holiday.mp4", "deadbeef.mp4", ".notes.partial", "thesis.tex"]
    for name in foreign:
        (tmp_path / name).write_bytes(bytes(1000))
        age(tmp_path / name, ABANDONED_S + 60)
    (tmp_path / f"{'0' * 64}.mp4").symlink_to(tmp_path / "holiday.mp4")
    (tmp_path / ("1" * 64)).mkdir()
    limited = LimitedFolder(tmp_path, 300)
    for digit in "abcdef":
        add(limited, f"{digit * 64}.mp4")
    left = names(tmp_path)
    assert {*foreign, f"{'0' * 64}.mp4", "1" * 64} <= left
    assert f"{'f' * 64}.mp4" in left and len(left) < len(foreign) + 2 + 4
