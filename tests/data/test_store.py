import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from museg_ray.data.annotations import read_annotations
from museg_ray.data.importing import import_annotations
from museg_ray.data.rules import RULES, read_policies
from museg_ray.data.schema import QUARANTINE_SCHEMA, QUERY_SCHEMA, VIDEO_ROOT_KEY
from museg_ray.data.store import load_queries, read_queries, read_report
from museg_ray.errors import DataError, ResourceError
from museg_ray.types import GroundingQuery

ROW = {"idx": 0, "problem": "q", "solution": [[1, 2]], "video": "charades/a.mp4", "task": "tvg"}
LONG = ROW | {"duration": 20, "video": "hacs/b.mp4"}
ROWS: list[Any] = [
    ROW,
    LONG | {"idx": 1, "solution": [[5, 3], [4, 20.5]]},
    LONG | {"idx": 2, "solution": [[1, 1]]},
    LONG | {"idx": 3, "solution": [[1, 2], [19, 30]]},
    "{",
    ROW | {"idx": 5},
]


def write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def imported(path: Path, out: Path, *rules: str, importer: str = "museg", **options: Any) -> dict[str, Any]:
    return import_annotations(importer, [path], out, read_policies(rules), check_videos=False, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An import of ROWS: two kept, four quarantined."""
    imported(write(tmp_path / "a.jsonl", ROWS), tmp_path / "out")
    return tmp_path / "out"


def test_what_is_kept(folder: Path) -> None:
    table = pq.read_table(folder / "queries.parquet")
    assert table.schema == QUERY_SCHEMA
    first, second = table.to_pylist()
    assert first == {
        "query_id": "a/0",
        "video": "charades/a.mp4",
        "question": "q",
        "segments": [{"start_s": 1.0, "end_s": 2.0}],
        "task": "tvg",
        "source": "charades",
        "duration_s": None,
        "split": "train",
        "repairs": [],
    }
    assert second["segments"] == [{"start_s": 3.0, "end_s": 20.0}]
    assert [tuple(repair.values()) for repair in second["repairs"]] == [
        ("reversed", "[[5.0, 3.0], [4.0, 20.5]]", "[[3.0, 5.0], [4.0, 20.5]]", 2.0),
        ("past_end", "[[3.0, 5.0], [4.0, 20.5]]", "[[3.0, 5.0], [4.0, 20.0]]", 0.5),
        ("overlapping", "[[3.0, 5.0], [4.0, 20.0]]", "[[3.0, 20.0]]", 1.0),
    ]
    assert list(second["repairs"][0]) == ["rule", "before", "after", "amount_s"]


def test_what_is_quarantined(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "quarantine.parquet")
    assert table.schema == QUARANTINE_SCHEMA
    rows = table.to_pylist()
    assert [(row["row"], row["rules"]) for row in rows] == [
        (3, ["zero_length"]),
        (4, ["past_end"]),
        (5, ["malformed"]),
        (6, ["duplicate", "duration_absent"]),
    ]
    assert {row["file"] for row in rows} == {str(tmp_path / "a.jsonl")}
    assert json.loads(rows[0]["raw"]) == ROWS[2]
    assert rows[2]["raw"] == "{"
    assert rows[3]["reason"] == "duplicate: an earlier row has this video, question and segments"


def test_the_report(folder: Path, tmp_path: Path) -> None:
    report = read_report(folder)
    assert (report["rows_in"], report["rows_kept"], report["rows_quarantined"]) == (6, 2, 4)
    assert list(report["rules"]) == list(RULES)
    assert report["rules"]["past_end"] == {
        "policy": "repair",
        "rows": 2,
        "repaired": 1,
        "quarantined": 1,
        "noted": 0,
        "largest_s": 10.0,
    }
    absent = report["rules"]["duration_absent"]
    assert (absent["rows"], absent["quarantined"], absent["noted"]) == (2, 1, 1)
    for counts in report["rules"].values():
        assert counts["rows"] == counts["repaired"] + counts["quarantined"] + counts["noted"]
    of_file = report["files"][str(tmp_path / "a.jsonl")]
    assert (of_file["rows_in"], of_file["rules"]["past_end"]) == (6, 2)


def test_the_same_import_writes_the_same_bytes_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(first) == {"queries.parquet", "quarantine.parquet", "report.json"}
    imported(tmp_path / "a.jsonl", folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_an_import_that_fails_leaves_the_old_files(folder: Path, tmp_path: Path) -> None:
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(DataError, match=r"a\.jsonl:3: zero_length"):
        imported(tmp_path / "a.jsonl", folder, "zero_length=error")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first
    with pytest.raises(ResourceError, match=r"Cannot write to .*a\.jsonl"):
        imported(tmp_path / "a.jsonl", tmp_path / "a.jsonl")


@pytest.mark.parametrize("num_written", range(2))
def test_a_write_that_fails_leaves_the_old_files_and_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    write_table, paths = pq.write_table, list[Path]()

    def fail(table: pa.Table, path: Path) -> None:
        if len(paths) == num_written:
            raise OSError(28, "No space left on device")
        paths.append(path)
        write_table(table, path)

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(ResourceError, match="No space left"):
        imported(write(tmp_path / "b.jsonl", [ROW]), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_imports_into_one_folder_at_once_leave_whole_files(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", [ROW] * 50) for name in "abcd"]
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda path: imported(path, tmp_path / "out"), paths * 3):
            pass
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "queries.parquet",
        "quarantine.parquet",
        "report.json",
    }
    assert len(read_queries(tmp_path / "out" / "queries.parquet")) == 1
    assert read_report(tmp_path / "out")["rows_in"] == 50


def test_queries_are_read_back(folder: Path) -> None:
    queries = read_queries(folder / "queries.parquet")
    video = str(folder.parent / "charades/a.mp4")
    assert queries[0] == GroundingQuery("a/0", video, "q", ((1.0, 2.0),), None, "tvg", "charades")
    assert (queries[1].segments, queries[1].duration_s) == (((3.0, 20.0),), 20.0)
    videos = {root: read_queries(folder / "queries.parquet", root)[0].video for root in ("/v", "s3://b/x")}
    assert videos == {"/v": "/v/charades/a.mp4", "s3://b/x": "s3://b/x/charades/a.mp4"}


def test_videos_of_parquet_start_from_the_argument_or_the_stored_root_or_its_folder(folder: Path) -> None:
    path = folder / "queries.parquet"
    table = pq.read_table(path)
    assert table.schema.metadata[VIDEO_ROOT_KEY] == str(folder.parent).encode()
    assert read_queries(path, "/v")[0].video == "/v/charades/a.mp4"
    assert read_queries(path)[0].video == str(folder.parent / "charades/a.mp4")
    pq.write_table(table.replace_schema_metadata(None), path)
    assert read_queries(path)[0].video == str(folder / "charades/a.mp4")


def test_space_around_a_video_of_parquet_is_no_part_of_it(folder: Path) -> None:
    rows = pq.read_table(folder / "queries.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0] | {"video": " a.mp4\n"}]), folder / "queries.parquet")
    assert read_queries(folder / "queries.parquet", "/v")[0].video == "/v/a.mp4"


def test_sound_rows_are_the_same_from_json_lines_and_from_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [ROW, LONG | {"idx": 1, "solution": [[1, 2], [5, 6]]}])
    imported(path, tmp_path)
    assert load_queries(path, "/v") == read_annotations(path, "/v") == load_queries(tmp_path / "queries.parquet", "/v")
    with pytest.raises(DataError, match=r"neither \.jsonl in MUSEG's schema nor \.parquet.*museg data import"):
        load_queries(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"query_id": "a/0"}, "row 2: field 'query_id' holds \"a/0\"; expected another"),
        ({"question": " "}, "row 2: field 'question'"),
        ({"task": "x"}, "row 2: field 'task'"),
        ({"segments": []}, "row 2: field 'segments'"),
        ({"segments": [{"start_s": 2.0, "end_s": 1.0}]}, "row 2: field 'segments' holds"),
        ({"duration_s": -1.0}, "row 2: field 'duration_s'"),
        ({"duration_s": 19.5}, "row 2: field 'segments' breaks the rule past_end: .* ends 0.5 s after the video"),
        ({"segments": [{"start_s": 3.0, "end_s": 9.0}, {"start_s": 5.0, "end_s": 6.0}]}, "overlapping: .*museg data"),
    ],
)
def test_parquet_of_other_hands_is_checked(folder: Path, change: dict[str, Any], complaint: str) -> None:
    path = folder / "queries.parquet"
    first, second = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([first, second | change]), path)
    with pytest.raises(DataError, match=complaint):
        read_queries(path)


def test_a_file_that_is_no_queries_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'query_id'; expected query_id, video"):
        read_queries(folder / "quarantine.parquet")
    with pytest.raises(DataError, match=r"Cannot read .*report\.json as Parquet"):
        read_queries(folder / "report.json")
    with pytest.raises(DataError, match=r"There is no file .*none\.parquet"):
        read_queries(tmp_path / "none.parquet")
    pq.write_table(QUERY_SCHEMA.empty_table(), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="has no rows"):
        read_queries(tmp_path / "empty.parquet")
    (tmp_path / "report.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="is no report"):
        read_report(tmp_path)


def test_pandas_and_hugging_face_datasets_read_the_files(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(folder / "queries.parquet")
    assert list(frame.columns) == QUERY_SCHEMA.names
    assert frame.segments[0][0] == {"start_s": 1.0, "end_s": 2.0}
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_parquet(str(folder / "queries.parquet"), cache_dir=str(folder))
    assert rows[1]["repairs"][0]["rule"] == "reversed"
