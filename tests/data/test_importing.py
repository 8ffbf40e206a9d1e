import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from museg_ray.data.annotations import check_videos
from museg_ray.data.durations import Durations
from museg_ray.data.importing import import_annotations
from museg_ray.data.rules import RULES, Policy, read_policies
from museg_ray.data.store import read_queries, read_report
from museg_ray.errors import DataError

ROW = {"idx": 0, "problem": "q", "solution": [[1, 2]], "video": "charades/a.mp4", "task": "tvg"}
LONG = ROW | {"duration": 20, "video": "hacs/b.mp4"}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def imported(path: Path, out: Path, *rules: str, importer: str = "museg", **options: Any) -> dict[str, Any]:
    return import_annotations(importer, [path], out, read_policies(rules), check_videos=False, **options)


def test_files_of_one_name_and_unknown_importers_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / name, [ROW]) for name in ("a.jsonl", "a.json")]
    with pytest.raises(DataError, match=r"a\.jsonl and .*a\.json are both named 'a'"):
        import_annotations("museg", files, tmp_path, read_policies([]), check_videos=False)
    with pytest.raises(DataError, match=r"no importer 'x'\. The importers are museg, "):
        imported(files[0], tmp_path, importer="x")


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["", " "], r"There are no rows in .*b\.jsonl; nothing was written"),
        (["", "{", "{"], r"None of 2 rows can be kept.*b\.jsonl:2: malformed: not valid JSON.* formats are museg, "),
        ([ROW | {"solution": [[3, 3]]}], r"None of 1 rows .*b\.jsonl:1: zero_length: \[3, 3\] lasts no time"),
    ],
)
def test_an_import_that_keeps_no_row_leaves_the_old_files(tmp_path: Path, rows: list[Any], complaint: str) -> None:
    out = tmp_path / "out"
    imported(write(tmp_path / "a.jsonl", [ROW]), out)
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(DataError, match=complaint):
        imported(write(tmp_path / "b.jsonl", rows), out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == first
    with pytest.raises(DataError, match=complaint):
        imported(tmp_path / "b.jsonl", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def touch_videos(*folders: Path) -> None:
    for folder in folders:
        (folder / "charades").mkdir(parents=True)
        (folder / "charades" / "a.mp4").touch()


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_training_finds_the_videos_that_the_import_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = write(tmp_path / "annotations" / "a.jsonl", [ROW])
    touch_videos(tmp_path / ("annotations" if where == "beside" else "videos"))
    monkeypatch.chdir(tmp_path)
    relative = path.relative_to(tmp_path)
    root = None if where == "beside" else "videos"
    report = import_annotations(
        "museg", [relative], tmp_path / "out", read_policies([]), check_videos=True, video_root=root
    )
    assert report["video_root"] == str(tmp_path / (root or "annotations"))
    monkeypatch.chdir("/")
    check_videos(read_queries(tmp_path / "out" / "queries.parquet"))


def test_files_of_several_folders_get_absolute_video_paths(tmp_path: Path) -> None:
    files = [write(tmp_path / name / f"{name}.jsonl", [ROW, "{"]) for name in ("one", "two")]
    touch_videos(tmp_path / "one", tmp_path / "two")
    report = import_annotations("museg", files, tmp_path, read_policies([]), check_videos=True)
    assert (report["video_root"], report["rows_kept"]) == (None, 2)
    queries = read_queries(tmp_path / "queries.parquet", "/elsewhere")
    assert [query.video for query in queries] == [str(tmp_path / name / "charades/a.mp4") for name in ("one", "two")]
    assert [query.source for query in queries] == ["charades"] * 2
    check_videos(queries)
    report = import_annotations(
        "museg", files, tmp_path, read_policies([]), check_videos=True, video_root="s3://bucket/x"
    )
    assert (report["video_root"], report["rules"]["duplicate"]["rows"]) == ("s3://bucket/x", 1)
    assert read_queries(tmp_path / "queries.parquet")[0].video == "s3://bucket/x/charades/a.mp4"


def test_durations_come_from_a_table_where_the_annotation_has_none(tmp_path: Path) -> None:
    table = tmp_path / "Charades_v1_train.csv"
    table.write_text("\ufeffid,subject,length\na,x,20.5\n", encoding="utf-8")
    path = write(tmp_path / "train.txt", ["a 1 20.75##x", "b 1 2##x", "a 3 4##y"])
    report = imported(path, tmp_path, importer="charades_sta", durations=[table])
    assert [query.duration_s for query in read_queries(tmp_path / "queries.parquet")] == [20.5, None, 20.5]
    assert report["rules"]["past_end"]["largest_s"] == 0.25
    assert read_report(tmp_path)["durations"] == {"files": [str(table)], "rows_filled": 2}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("a,0", "field 'length' holds '0'; expected seconds above 0"),
        ("a,-3", "field 'length' holds '-3'"),
        ("a,nan", "field 'length' holds 'nan'"),
        ("a,inf", "field 'length' holds 'inf'"),
        ("a,long", "field 'length' holds 'long'"),
        ("a,", "field 'length' is missing"),
        (",3", "field 'id' is missing"),
    ],
)
def test_a_length_that_is_none_is_refused_by_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    table = tmp_path / "lengths.csv"
    table.write_text(f"id,length\nb,1\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"lengths\.csv:3: {complaint}.*a column 'length' in seconds"):
        Durations([table])
    with pytest.raises(DataError, match=r"lengths\.csv:3"):
        imported(write(tmp_path / "a.jsonl", [ROW]), tmp_path / "out", durations=[table])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "complaint"), [("x.mp4,1\n", r"it has e\.g\. 'x\.mp4', .* have e\.g\. 'a'"), ("", "it has no ids")]
)
def test_lengths_of_other_videos_are_refused(tmp_path: Path, lines: str, complaint: str) -> None:
    table = tmp_path / "lengths.csv"
    table.write_text(f"id,length\n{lines}", encoding="utf-8")
    with pytest.raises(DataError, match=rf"lengths\.csv has a length of none of the 1 videos.*{complaint}"):
        imported(write(tmp_path / "a.jsonl", [ROW]), tmp_path / "out", durations=[table])
    assert not (tmp_path / "out").exists()


def test_lengths_that_no_row_needs_are_no_mistake(tmp_path: Path) -> None:
    table = tmp_path / "lengths.csv"
    table.write_text("id,length\nb,3\n", encoding="utf-8")
    report = imported(write(tmp_path / "a.jsonl", [LONG]), tmp_path, durations=[table])
    assert report["durations"]["rows_filled"] == 0
    assert read_queries(tmp_path / "queries.parquet")[0].duration_s == 20


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
    rows = [LONG | {"idx": "sound"}, *rows]  # an import that keeps nothing is refused
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
    assert len(read_queries(folder / "queries.parquet")) == len(kept)


TURNS = [{"from": "human", "value": "q"}]
SOUND: dict[str, dict[str, Any]] = {
    "museg_eval": {"video": "a.mp4", "question": "q", "groundtruth": [[1, 2]]},
    "et_bench": {"task": "tvg", "source": "s", "video": "a.mp4", "duration": 9, "tgt": [1, 2], "q": "q"},
    "et_instruct": {
        "task": "tvg", "source": "s", "video": "a.mp4", "duration": 9, "tgt": [1, 2], "conversations": TURNS
    },
    "activitynet": {"duration": 9, "timestamps": [[1, 2]], "sentences": ["q"]},
    "qvhighlights": {"qid": "sound", "query": "q", "duration": 9, "vid": "a", "relevant_windows": [[1, 2]]},
    "generic": {
        "video": "a.mp4", "question": "q", "segments": "1-2", "duration_s": 9, "task": "tvg", "source": "s", "idx": "x"
    },
}  # fmt: skip
"""A row of each format with all its fields."""
VALUES = st.sampled_from(["tvg", "vhd", "a.mp4", "1-2 5-3"]) | st.floats(1, 30) | PAIRS | JSON


@settings(max_examples=100)
@given(st.data(), st.sampled_from(sorted(SOUND)))
def test_no_row_of_any_format_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, importer: str
) -> None:
    fields = dict.fromkeys(SOUND[importer], VALUES)
    rows = [SOUND[importer], *data.draw(st.lists(st.fixed_dictionaries({}, optional=fields) | JSON, max_size=4))]
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
    lines = ["A 1 2##sound", *lines]
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
    assert [json.loads(row["raw"])["idx"] for row in quarantined] == [1348, 2027, 4098, 5184, 534, 1601, 5069, 6010]
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
