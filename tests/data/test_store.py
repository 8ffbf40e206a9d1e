import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from museg_ray.data.annotations import read_annotations
from museg_ray.data.rules import RULES, Policy, read_policies
from museg_ray.data.schema import QUARANTINE_SCHEMA, QUERY_SCHEMA
from museg_ray.data.store import import_annotations, load_queries, read_durations, read_queries, read_report
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


def test_queries_are_read_back(folder: Path) -> None:
    queries = read_queries(folder / "queries.parquet")
    video = str(folder / "charades/a.mp4")
    assert queries[0] == GroundingQuery("a/0", video, "q", ((1.0, 2.0),), None, "tvg", "charades")
    assert (queries[1].segments, queries[1].duration_s) == (((3.0, 20.0),), 20.0)
    videos = {root: read_queries(folder / "queries.parquet", root)[0].video for root in ("/v", "s3://b/x")}
    assert videos == {"/v": "/v/charades/a.mp4", "s3://b/x": "s3://b/x/charades/a.mp4"}


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
    with pytest.raises(DataError, match=r"Cannot read .*none\.parquet"):
        read_queries(tmp_path / "none.parquet")
    imported(write(tmp_path / "b.jsonl", ["{"]), tmp_path / "b")
    with pytest.raises(DataError, match="has no rows"):
        read_queries(tmp_path / "b" / "queries.parquet")
    (tmp_path / "report.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="is no report"):
        read_report(tmp_path)


def test_files_of_one_name_and_unknown_importers_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / name, [ROW]) for name in ("a.jsonl", "a.json")]
    with pytest.raises(DataError, match=r"a\.jsonl and .*a\.json are both named 'a'"):
        import_annotations("museg", files, tmp_path, read_policies([]), check_videos=False)
    with pytest.raises(DataError, match=r"no importer 'x'\. The importers are museg, "):
        imported(files[0], tmp_path, importer="x")


def test_durations_come_from_a_table_where_the_annotation_has_none(tmp_path: Path) -> None:
    table = tmp_path / "Charades_v1_train.csv"
    table.write_text("id,subject,length\na,x,20.5\n", encoding="utf-8")
    path = write(tmp_path / "train.txt", ["a 1 20.75##x", "b 1 2##x"])
    report = imported(path, tmp_path, importer="charades_sta", durations=table)
    assert [query.duration_s for query in read_queries(tmp_path / "queries.parquet")] == [20.5, None]
    assert report["rules"]["past_end"]["largest_s"] == 0.25
    table.write_text("id,length\na,long\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"Charades_v1_train\.csv:2: .*'long'; expected"):
        read_durations(table)


def test_pandas_and_hugging_face_datasets_read_the_files(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(folder / "queries.parquet")
    assert list(frame.columns) == QUERY_SCHEMA.names
    assert frame.segments[0][0] == {"start_s": 1.0, "end_s": 2.0}
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_parquet(str(folder / "queries.parquet"), cache_dir=str(folder))
    assert rows[1]["repairs"][0]["rule"] == "reversed"


NUMBERS = st.floats() | st.integers(-3, 30) | st.integers(0, 60).map(lambda n: n / 2) | st.just(10**400)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS).map(list), max_size=4)
MUSEG_ROWS = st.fixed_dictionaries(
    {
        "idx": st.integers(0, 9) | JSON,
        "problem": st.sampled_from(["p", "q"]) | JSON,
        "solution": PAIRS | JSON,
        "video": st.sampled_from(["a.mp4", "s3://b/c/a.mp4"]) | JSON,
        "task": st.sampled_from(["tvg", "tal"]) | JSON,
    },
    optional={"duration": st.floats(1, 30) | JSON},
)
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)


@settings(max_examples=100)
@given(
    rows=st.lists(MUSEG_ROWS | JSON.map(json.dumps) | LINES.filter(str.strip), max_size=8),
    policy=st.sampled_from([Policy.REPAIR, Policy.QUARANTINE]),
)
def test_whatever_comes_in_is_kept_sound_or_quarantined(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], policy: Policy
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    rules = [f"{name}={policy}" for name, rule in RULES.items() if policy in rule.policies]
    report = imported(write(folder / "a.jsonl", rows), folder, *rules)
    kept = pq.read_table(folder / "queries.parquet").to_pylist()
    quarantined = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert report["rows_in"] == len(rows) == len(kept) + len(quarantined)
    assert (report["rows_kept"], report["rows_quarantined"]) == (len(kept), len(quarantined))
    assert all(row["rules"] and row["reason"] for row in quarantined)
    for row in kept:
        segments = [(part["start_s"], part["end_s"]) for part in row["segments"]]
        assert segments
        assert all(0 <= start_s < end_s <= min(row["duration_s"] or 1e12, 1e12) for start_s, end_s in segments)
        assert all(left[1] <= right[0] for left, right in pairwise(segments))
    if kept:
        assert len(read_queries(folder / "queries.parquet")) == len(kept)


FIELDS_OF = {
    "museg_eval": "video question groundtruth",
    "et_bench": "task source video duration tgt q",
    "et_instruct": "task source video duration tgt conversations",
    "activitynet": "duration timestamps sentences",
    "qvhighlights": "qid query duration vid relevant_windows",
    "generic": "video question segments duration_s task source idx",
}
VALUES = st.sampled_from(["tvg", "vhd", "a.mp4", "1-2 5-3"]) | st.floats(1, 30) | PAIRS | JSON


@settings(max_examples=100)
@given(st.data(), st.sampled_from(sorted(FIELDS_OF)))
def test_no_row_of_any_format_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, importer: str
) -> None:
    fields = {field: VALUES for field in FIELDS_OF[importer].split()}
    rows = data.draw(st.lists(st.fixed_dictionaries({}, optional=fields) | JSON, max_size=4))
    path = tmp_path_factory.getbasetemp() / "any_format.json"
    if importer in ("qvhighlights", "generic"):
        write(path, [json.dumps(row) for row in rows])
    elif importer == "activitynet":
        path.write_text(json.dumps({f"v{place}": row for place, row in enumerate(rows)}), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    report = imported(path, path.parent / "any_format", importer=importer)
    assert report["rows_in"] == report["rows_kept"] + report["rows_quarantined"]
    assert report["rows_in"] >= len(rows) if importer == "activitynet" else report["rows_in"] == len(rows)


@settings(max_examples=50)
@given(st.lists(LINES.filter(str.strip) | st.from_regex(r"\A[A-B]+ -?[0-9]{1,2} [0-9]{1,2}##[a-b]\Z"), max_size=6))
def test_no_line_of_text_is_lost(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any_text"
    folder.mkdir(exist_ok=True)
    report = imported(write(folder / "a.txt", lines), folder, importer="charades_sta")
    assert report["rows_in"] == len(lines) == report["rows_kept"] + report["rows_quarantined"]


def test_the_counts_over_the_released_rows(shared_dir: Path, tmp_path: Path) -> None:
    files = [shared_dir / "data" / "annotations" / f"stage_{stage}.jsonl" for stage in (1, 2)]
    if not all(file.is_file() for file in files):
        pytest.skip("the released annotations are not there")
    report = import_annotations("museg", files, tmp_path, read_policies([]), check_videos=False)
    assert (report["rows_in"], report["rows_kept"], report["rows_quarantined"]) == (12_600, 12_592, 8)
    rows = {name: counts["rows"] for name, counts in report["rules"].items() if counts["rows"]}
    assert rows == {"reversed": 2, "past_end": 410, "zero_length": 5, "overlapping": 109, "duration_absent": 6337}
    assert [report["files"][str(file)]["rules"]["past_end"] for file in files] == [194, 216]
    past_end = report["rules"]["past_end"]
    assert (past_end["repaired"], past_end["quarantined"], past_end["largest_s"]) == (406, 4, 91.697)
    quarantined = pq.read_table(tmp_path / "quarantine.parquet").to_pylist()
    assert [json.loads(row["raw"])["idx"] for row in quarantined] == [383, 1348, 2027, 4098, 5184, 1601, 5069, 6010]
    queries = read_queries(tmp_path / "queries.parquet")
    assert sum(query.source == "charades" and query.duration_s is None for query in queries) == 6337


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("charades_sta", {"rows_in": 3720}),
        ("thumos14", {"rows_in": 227, "unsorted": 30, "overlapping": 2}),
        ("thumos15", {"rows_in": 474, "overlapping": 5}),
    ],
)
def test_the_counts_over_the_evaluation_rows(
    shared_dir: Path, tmp_path: Path, name: str, counts: dict[str, int]
) -> None:
    file = shared_dir / "data" / "annotations" / f"{name}.json"
    if not file.is_file():
        pytest.skip("the evaluation annotations are not there")
    report = imported(file, tmp_path, importer="museg_eval", split="test")
    found = {rule: of_rule["rows"] for rule, of_rule in report["rules"].items() if of_rule["rows"]}
    assert {"rows_in": report["rows_in"]} | found == counts | {"duration_absent": counts["rows_in"]}
    assert report["rows_quarantined"] == 0
    assert {query.task for query in read_queries(tmp_path / "queries.parquet")} == {
        "tvg" if name == "charades_sta" else "tal"
    }
