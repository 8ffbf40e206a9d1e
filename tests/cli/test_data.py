"""`museg data import` and `museg data inspect`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from museg_ray.cli.main import app
from museg_ray.data.store import read_queries
from museg_ray.errors import DataError

ROW = {"idx": 0, "problem": "q", "solution": [[1, 2]], "video": "charades/a.mp4", "task": "tvg"}
ROWS = [
    ROW,
    ROW | {"idx": 1, "solution": [[5, 3]]},
    ROW | {"idx": 2, "solution": [[5, 5]], "problem": "[b]bold"},
    ROW | {"idx": 3, "solution": [[5, 6], [1, 2]], "task": "tal", "duration": 20},
]


def museg_data(*arguments: str | Path) -> list[str]:
    """The printed lines, white space folded."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return [" ".join(line.split()) for line in result.output.splitlines()]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


def test_import_says_what_it_kept_and_what_it_did(annotations: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = museg_data("import", "museg", annotations, "--out", out, "--no-videos", "--split", "mine")
    assert "charades tal 1 0 1 1" in lines
    assert "all 3 2 1 1" in lines
    assert "queries 2 1 0 0 0 0 0 0" in lines
    assert "videos 1 0 20.00 20.00 20.00" in lines
    assert "reversed repair 1 1 0 0 2.000" in lines
    assert "zero_length quarantine 1 0 1 0" in lines
    assert f"4 rows in = 3 kept in {out / 'queries.parquet'} + 1 in {out / 'quarantine.parquet'}" in lines
    assert lines[-2:] == [
        f"Relative video paths start from {tmp_path}",
        "Video files were not looked for (--no-videos).",
    ]


def test_rules_videos_and_durations_are_chosen(annotations: Path, tmp_path: Path) -> None:
    table = tmp_path / "lengths.csv"
    table.write_text("id,length\na,7\n", encoding="utf-8")
    lines = museg_data("import", "museg", annotations, "--out", tmp_path, "--durations", table, "--no-videos",
                       "--rule", "zero_length=repair", "--rule", "reversed=quarantine")  # fmt: skip
    assert f"Rows that got their length from {table}: 3" in lines
    queries = read_queries(tmp_path / "queries.parquet")
    assert {query.query_id: query.duration_s for query in queries} == {"a/0": 7, "a/2": 7, "a/3": 20}
    with pytest.raises(DataError, match=r"None of 4 rows .*a\.jsonl:1: missing_video: no file .*--video-root"):
        museg_data("import", "museg", annotations, "--out", tmp_path)
    (tmp_path / "videos" / "charades").mkdir(parents=True)
    (tmp_path / "videos" / "charades" / "a.mp4").touch()
    lines = museg_data("import", "museg", annotations, "--out", tmp_path, "--video-root", tmp_path / "videos")
    assert not any(line.startswith("missing_video") for line in lines)
    assert f"Relative video paths start from {tmp_path / 'videos'}" in lines


def test_an_import_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"There are no rows in .*a\.jsonl"):
        museg_data("import", "museg", tmp_path / "a.jsonl", "--out", tmp_path / "out", "--no-videos")


def test_files_of_several_folders_are_said_to_have_no_one_root(annotations: Path, tmp_path: Path) -> None:
    other = tmp_path / "b" / "b.jsonl"
    other.parent.mkdir()
    other.write_text(json.dumps(ROW), encoding="utf-8")
    lines = museg_data("import", "museg", annotations, other, "--out", tmp_path, "--no-videos")
    assert "Video paths were made absolute: each started from the folder of its annotation file." in lines


def test_inspect_shows_repairs_and_quarantined_rows(annotations: Path, tmp_path: Path) -> None:
    museg_data("import", "museg", annotations, "--out", tmp_path, "--no-videos")
    lines = museg_data("inspect", tmp_path)
    assert "all 3 2 1 1" in lines
    assert "a/1 reversed 5.00 to 3.00 3.00 to 5.00 2.000" in lines
    assert "a/3 unsorted 5.00 to 6.00, 1.00 to 2.00 1.00 to 2.00, 5.00 to 6.00" in lines
    (shown,) = [line for line in lines if line.startswith("a.jsonl:3")]
    assert shown.startswith('a.jsonl:3 zero_length: [5, 5] lasts no time {"idx": 2, "problem": "[b]bold"')
    assert "repairs: 2" in lines
    assert "quarantined rows: 1" in lines


def test_inspect_shows_less_when_asked(annotations: Path, tmp_path: Path) -> None:
    museg_data("import", "museg", annotations, "--out", tmp_path, "--no-videos")
    assert "repairs: 1" in museg_data("inspect", tmp_path, "--rule", "reversed")
    assert "quarantined rows: 0" in museg_data("inspect", tmp_path, "--rule", "reversed")
    assert not any("repairs" in line for line in museg_data("inspect", tmp_path, "--quarantined"))
    assert "repairs: 2, the first 1 shown; --limit N shows more" in museg_data("inspect", tmp_path, "--limit", "1")


def test_mistakes_are_one_clear_error(annotations: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no importer 'musegg'"):
        museg_data("import", "musegg", annotations, "--out", tmp_path)
    with pytest.raises(DataError, match="no rule 'zero'"):
        museg_data("import", "museg", annotations, "--out", tmp_path, "--rule", "zero=repair")
    with pytest.raises(DataError, match="no such rule"):
        museg_data("inspect", tmp_path, "--rule", "zero")
    with pytest.raises(DataError, match=r"There is no file .*queries\.parquet"):
        museg_data("inspect", tmp_path / "nothing")
