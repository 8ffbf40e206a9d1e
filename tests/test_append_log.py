"""Files that only grow: what they hold is what a list would, over marks, rewinds, crashes and new processes."""

import json
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.append_log import BLOCK_BYTES, AppendLog, Watermark, read_rows
from museg_ray.errors import CheckpointError, ResourceError

ROWS = st.lists(st.fixed_dictionaries({"text": st.text(max_size=5), "n": st.integers(0, 9)}), max_size=3)
TORN = ('{"torn', '{"n": 1}', "")
DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), ROWS),
        st.tuples(st.just("mark"), st.none()),
        st.tuples(st.just("rewind"), st.integers(0, 5)),
        st.tuples(st.just("rewind anew"), st.integers(0, 5)),
        st.tuples(st.just("crash"), st.sampled_from(TORN)),
    ),
    max_size=20,
)


@given(DEEDS)
def test_a_log_is_a_list_that_can_be_taken_back_to_its_marks(deeds: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        log, rows = AppendLog(path), list[dict[str, Any]]()
        marks: list[tuple[Watermark, list[dict[str, Any]]]] = [(Watermark(), [])]
        for deed, what in deeds:
            if deed == "append":
                log.append(what)
                rows += what
            elif deed == "mark":
                marks.append((log.mark(), list(rows)))
            elif deed.startswith("rewind"):
                marks = marks[: what % len(marks) + 1]
                mark, kept = marks[-1]
                log.rewind(mark)
                if deed == "rewind anew":  # by the process that follows one which was killed behind it
                    log = AppendLog(path)
                    log.rewind(mark)
                rows = list(kept)
            else:
                with path.open("a") as file:
                    file.write(what)  # without the end of a line
                log = AppendLog(path)
            assert list(log.rows()) == rows
            if deed.startswith("rewind") or (deed == "append" and what):
                assert path.is_file() == bool(rows)
                assert not rows or path.read_bytes().endswith(b"}\n"), "without what was torn"


def test_a_mark_reads_nothing_however_long_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append({"n": index} for index in range(1000))
    size_bytes = (tmp_path / "log.jsonl").stat().st_size
    monkeypatch.setattr(Path, "open", lambda path, *_: pytest.fail("read"))
    assert log.mark().size_bytes == size_bytes


@pytest.mark.parametrize("change", [lambda text: text[1:], lambda text: text.replace("3", "4"), lambda text: ""])
def test_a_file_that_was_changed_below_its_mark_is_refused_by_name(change: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = AppendLog(path)
    log.append([{"n": 3}, {"n": 5}])
    mark = log.mark()
    log.append([{"n": 6}])
    path.write_text(change(path.read_text()))
    with pytest.raises(CheckpointError, match=r"log\.jsonl does not begin with the 18 bytes"):
        AppendLog(path).rewind(mark)


def test_a_mark_survives_json(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append([{"n": 1}])
    mark = log.mark()
    assert Watermark(**json.loads(json.dumps(asdict(mark)))) == mark


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl, line 2 is damaged"):
        list(AppendLog(path).rows())


def test_a_full_disk_says_what_to_do() -> None:
    log = AppendLog(Path("/dev/full"))
    with pytest.raises(ResourceError, match="No space left on device"):
        log.append([{"n": 1}])
    assert log.mark() == Watermark()


@contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """No file of this process may be larger: what is written beyond fails, and the last write before is cut."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append([{"n": 1}])
    with room_for(size_bytes=20), pytest.raises(ResourceError, match="could not be written"):
        log.append([{"n": 2}, {"n": 3}])
    assert log.path.read_text() == '{"n": 1}\n'
    log.append([{"n": 4}])
    assert [row["n"] for row in log.rows()] == [1, 4]
    AppendLog(log.path).rewind(log.mark())


def test_a_line_that_is_written_while_it_is_read_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file gives that grows between two reads: a beginning without its end, then the end."""
    path = tmp_path / "log.jsonl"
    path.touch()
    pieces = [b'{"n": 1}\n', b'{"n"', b": 2}\n"]
    monkeypatch.setattr(Path, "open", lambda self, mode: nullcontext(iter(pieces)))
    assert list(read_rows(path)) == [{"n": 1}]


@pytest.mark.parametrize("num_bytes", [BLOCK_BYTES - 10, BLOCK_BYTES - 9, 3 * BLOCK_BYTES])
def test_a_torn_line_of_any_length_goes_with_the_first_write_and_not_before(num_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    AppendLog(path).append([{"n": 1}])
    with path.open("a") as file:
        file.write("x" * num_bytes)
    torn = path.read_text()
    log = AppendLog(path)
    log.check(log.mark())
    log.close()
    assert path.read_text() == torn, "a run that is refused leaves its books alone"
    log.append([{"text": "y" * num_bytes}])
    mark = log.mark()
    AppendLog(path).rewind(mark)
    assert [*log.rows()] == [{"n": 1}, {"text": "y" * num_bytes}]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n")
    monkeypatch.setattr(Path, "open", lambda path, *_: os.open("/nowhere", os.O_RDONLY))
    with pytest.raises(ResourceError, match=r"log\.jsonl cannot be opened: No such file"):
        AppendLog(tmp_path / "log.jsonl")
