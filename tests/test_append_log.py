"""Files that only grow: what they hold is what a list would, over marks, rewinds, crashes and new processes."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.append_log import AppendLog, Watermark
from museg_ray.errors import CheckpointError, ResourceError

ROWS = st.lists(st.fixed_dictionaries({"text": st.text(max_size=5), "n": st.integers(0, 9)}), max_size=3)
DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), ROWS),
        st.tuples(st.just("mark"), st.none()),
        st.tuples(st.just("rewind"), st.integers(0, 5)),
        st.tuples(st.just("crash"), st.sampled_from(['{"torn', '{"n": 1}', ""])),
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
            elif deed == "rewind":
                marks = marks[: what % len(marks) + 1]
                mark, kept = marks[-1]
                log.rewind(mark)
                rows = list(kept)
            else:
                with path.open("a") as file:
                    file.write(what)  # without the end of a line
                log = AppendLog(path)
            assert list(log.rows()) == rows
            assert path.is_file() == bool(rows) or not rows


def test_a_mark_reads_nothing_however_long_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append({"n": index} for index in range(1000))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    size_bytes = (tmp_path / "log.jsonl").stat().st_size
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
    with pytest.raises(ResourceError, match="Free disk space"):
        log.append([{"n": 1}])
