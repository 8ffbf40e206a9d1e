"""Small made-up examples of every format that is imported."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from museg_ray.data.importers import IMPORTERS
from museg_ray.data.importers.generic import Unit, read_generic
from museg_ray.data.importers.guess import guess_format
from museg_ray.data.importers.rows import ImportedRow, NotGrounding
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery


def imported(importer: str, path: Path, content: Any) -> list[ImportedRow]:
    """The rows of a file with that content: its text, lines of JSON rows, or JSON."""
    if path.suffix == ".jsonl" and not isinstance(content, str):
        content = "\n".join(json.dumps(row) for row in content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return list(IMPORTERS[importer](path))


def parsed(importer: str, path: Path, content: Any) -> list[GroundingQuery | DataError]:
    return [row.parsed for row in imported(importer, path, content)]


MUSEG_ROW = {
    "idx": 7,
    "problem": "Find 'beer pong'.",
    "solution": [[5, 1.5], [0, 2]],
    "video": "videos/et_instruct_164k/hacs/a.mp4",
    "task": "tal",
    "duration": 12,
}


def test_museg(tmp_path: Path) -> None:
    assert parsed("museg", tmp_path / "stage_1.jsonl", [MUSEG_ROW]) == [
        GroundingQuery(
            query_id="stage_1/7",
            video="videos/et_instruct_164k/hacs/a.mp4",
            question="Find 'beer pong'.",
            segments=((5.0, 1.5), (0.0, 2.0)),  # as annotated
            duration_s=12.0,
            task="tal",
            source="hacs",
        )
    ]


def test_museg_eval(tmp_path: Path) -> None:
    rows = [
        {"video": "charades/A.mp4", "question": "a person sits", "groundtruth": [[24.3, 30.4]]},
        {"video": "thumos14/b.mp4", "question": "diving", "groundtruth": [[5, 6], [1, 2]]},
    ]
    assert parsed("museg_eval", tmp_path / "eval.json", rows) == [
        GroundingQuery("eval/1", "charades/A.mp4", "a person sits", ((24.3, 30.4),), None, "tvg", "charades"),
        GroundingQuery("eval/2", "thumos14/b.mp4", "diving", ((5.0, 6.0), (1.0, 2.0)), None, "tal", "thumos14"),
    ]


BENCH = {"version": 1.0, "idx": 0, "source": "qvhighlights", "video": "qvhighlights/a.mp4", "duration": 150.3}
FORMAT = " The format of your response should be: 'The event happens in <start time> - <end time>'."


@pytest.mark.parametrize("importer", ["et_bench", "museg_eval"])
def test_et_bench(tmp_path: Path, importer: str) -> None:
    rows = [
        BENCH | {"task": "tvg", "tgt": [[15, 31]], "q": "Find a cat." + FORMAT},
        BENCH | {"task": "epm", "tgt": [15, 31], "q": "Where is the key?" + FORMAT},
        BENCH | {"task": "vhd", "tgt": [[[56, 76], [78, 80]], [[60, 64]]], "q": "Find a highlight."},
        BENCH | {"task": "rar", "p": 0, "o": ["a", "b"], "q": "Which?"},
        BENCH | {"task": "tem", "tgt": [[1, 2]], "src": [3, 4], "q": "Find the like of it."},
        BENCH | {"task": "tvg", "tgt": [[15, 31]], "q": "Find what is at <vid>."},
    ]
    queries = parsed(importer, tmp_path / "etbench_txt_v1.0.json", rows)
    assert queries[0] == GroundingQuery(
        "etbench_txt_v1.0/1", "qvhighlights/a.mp4", "Find a cat.", ((15.0, 31.0),), 150.3, "tvg", "qvhighlights"
    )
    assert isinstance(queries[1], GroundingQuery)
    assert (queries[1].question, queries[1].segments, queries[1].task) == ("Where is the key?", ((15, 31),), "tvg")
    assert isinstance(queries[2], GroundingQuery)
    assert (queries[2].segments, queries[2].task) == (((56, 76), (78, 80), (60, 64)), "tal")
    assert isinstance(queries[3], NotGrounding)
    assert isinstance(queries[4], NotGrounding)
    assert "<vid>" in str(queries[5])


def test_et_instruct(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nFind 'surfing'." + FORMAT}, {"from": "gpt", "value": "…"}]
    row = {"task": "tal", "source": "hacs", "video": "hacs/a.mp4", "duration": 200.7, "conversations": turns}
    rows = [
        row | {"tgt": [36, 44, 49, 57]},
        row | {"tgt": [36, 44, 49]},
        row | {"tgt": []},
        row | {"tgt": [1, 2], "task": "slc"},
        row | {"tgt": [1, 2], "conversations": turns * 2},
    ]
    first, *others = parsed("et_instruct", tmp_path / "et.json", rows)
    segments = ((36.0, 44.0), (49.0, 57.0))
    assert first == GroundingQuery("et/1", "hacs/a.mp4", "Find 'surfing'.", segments, 200.7, "tal", "hacs")
    assert [type(other) for other in others] == [DataError, DataError, NotGrounding, DataError]


def test_charades_sta(tmp_path: Path) -> None:
    rows = parsed("charades_sta", tmp_path / "train.txt", "AO8RW 0.0 6.9##a person sits.\n\nB 5 -1.5 ## x\nC 1##y\n")
    assert rows[0] == GroundingQuery("train/1", "AO8RW.mp4", "a person sits.", ((0.0, 6.9),), None, "tvg", "charades")
    assert rows[1] == GroundingQuery("train/3", "B.mp4", "x", ((5.0, -1.5),), None, "tvg", "charades")
    assert "VIDEO START END##SENTENCE" in str(rows[2])


def test_activitynet(tmp_path: Path) -> None:
    content = {
        "v_a": {"duration": 82.7, "timestamps": [[0.8, 19.8], [17.4, 60.8]], "sentences": ["A man. ", " He sits."]},
        "v_b": {"duration": 82.7, "timestamps": [[0.8, 19.8]], "sentences": []},
        "v_c": [],
        "v_d": {"duration": 10, "timestamps": [[0.8]], "sentences": ["A dog."]},
    }
    rows = imported("activitynet", tmp_path / "val_1.json", content)
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert rows[1].parsed == GroundingQuery(
        "val_1/2", "v_a.mp4", "He sits.", ((17.4, 60.8),), 82.7, "tvg", "activitynet"
    )
    assert all(isinstance(row.parsed, DataError) for row in rows[2:])
    assert json.loads(rows[3].raw) == {"video": "v_c", "entry": []}


TACOS_ENTRY = {"timestamps": [[224, 358]], "sentences": [" She opens it. "], "fps": 29.4, "num_frames": 12352}


def test_tacos_counts_frames(tmp_path: Path) -> None:
    assert parsed("tacos", tmp_path / "train.json", {"s17-d69.avi": TACOS_ENTRY}) == [
        GroundingQuery("train/1", "s17-d69.avi", "She opens it.", ((7.619048, 12.176871),), 420.136, "tvg", "tacos")
    ]
    for wrong in ({"fps": 0}, {"fps": "29.4"}, {"num_frames": None}, {"fps": True}):
        (row,) = parsed("tacos", tmp_path / "train.json", {"a": TACOS_ENTRY | wrong})
        assert f"'{next(iter(wrong))}' holds" in str(row)
    (row,) = parsed("tacos", tmp_path / "train.json", {"a": {"timestamps": [[1, 2]], "sentences": ["x"]}})
    assert "'fps' is missing" in str(row)


@pytest.mark.parametrize("field", ["fps", "num_frames"])
def test_frame_numbers_are_never_taken_for_seconds(tmp_path: Path, field: str) -> None:
    entry = {"duration": 10.0, "timestamps": [[1, 2]], "sentences": ["x"], field: 30}
    with pytest.raises(DataError, match=r"these are frame numbers, use tacos"):
        parsed("activitynet", tmp_path / "a.json", {"b": entry})


def test_qvhighlights(tmp_path: Path) -> None:
    row = {"qid": 8737, "query": "A family.", "duration": 126, "vid": "bP5_660.0", "relevant_windows": [[0, 16]]}
    first, without = parsed("qvhighlights", tmp_path / "val.jsonl", [row, {**row, "relevant_windows": []}])
    assert first == GroundingQuery(
        "val/8737", "bP5_660.0.mp4", "A family.", ((0.0, 16.0),), 126.0, "tal", "qvhighlights"
    )
    assert "'relevant_windows' holds []" in str(without)


def test_generic_json_lines(tmp_path: Path) -> None:
    rows = [
        {"video": "s3://b/corpus/a.mp4", "question": "q", "segments": "12.3-15.0 20.1-31.75", "duration_s": 40},
        {"video": "a.mp4", "question": "q", "segments": [[1, 2]], "task": "tal", "source": "mine", "idx": "x"},
    ]
    assert parsed("generic", tmp_path / "a.jsonl", rows) == [
        GroundingQuery("a/1", "s3://b/corpus/a.mp4", "q", ((12.3, 15.0), (20.1, 31.75)), 40.0, "tal", "corpus"),
        GroundingQuery("a/x", "a.mp4", "q", ((1.0, 2.0),), None, "tal", "mine"),
    ]


def test_generic_csv(tmp_path: Path) -> None:
    text = (
        "\ufeffvideo,question,segments,duration_s,other\n"
        'a.mp4,"red, then ""blue""",12.3-15.0 20.1-31.75,40,?\n'
        "a.mp4,q,3-1,,\n"
        "a.mp4,q,1 to 2,,\n"
        "a.mp4,q,1-2,long,\n"
        "a.mp4,q,1-2,,,extra\n"
        ",q,1-2,,\n"
    )
    rows = imported("generic", tmp_path / "a.csv", text)
    assert [row.number for row in rows] == [2, 3, 4, 5, 6, 7]
    asked = 'red, then "blue"'
    assert rows[0].parsed == GroundingQuery("a/2", "a.mp4", asked, ((12.3, 15.0), (20.1, 31.75)), 40.0, "tal", "")
    assert rows[1].parsed == GroundingQuery("a/3", "a.mp4", "q", ((3.0, 1.0),), None, "tvg", "")
    complaints = ["'segments' holds", "'duration_s' holds \"long\"", "more cells", "'video' is missing"]
    for row, complaint in zip(rows[2:], complaints, strict=True):
        assert complaint in str(row.parsed)


SECONDS = ((62.5, 75.0),)


@pytest.mark.parametrize(
    ("row", "default"),
    [
        ({"segments": "62.5-75"}, None),
        ({"segments": "62500-75000", "unit": "ms"}, None),
        ({"segments": "62500-75000"}, Unit.MILLISECONDS),
        ({"segments": [[1875, 2250]], "unit": "frames", "fps": 30}, None),
        ({"segments": [[1875, 2250]], "fps": 30}, Unit.FRAMES),
        ({"segments": "1:02.5-0:01:15", "unit": "hh:mm:ss"}, None),
        ({"segments": [["0:01:02.5", "00:01:15"]]}, Unit.CLOCK),
        ({"segments": "62.5-75", "unit": "s", "fps": 30}, Unit.FRAMES),
    ],
)
def test_generic_times_have_the_unit_that_the_row_or_the_caller_tells(
    tmp_path: Path, row: dict[str, Any], default: Unit | None
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"video": "a.mp4", "question": "q"} | row))
    (read,) = read_generic(path, default)
    assert isinstance(read.parsed, GroundingQuery), read.parsed
    assert read.parsed.segments == SECONDS


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"segments": "1-2", "fps": 30}, "has fps and no unit"),
        ({"segments": "1-2", "unit": "frames"}, "'fps' holds null; expected frames a second"),
        ({"segments": "1-2", "unit": "frames", "fps": 0}, "'fps' holds 0"),
        ({"segments": "1-2", "unit": "minutes"}, "'unit' holds \"minutes\"; expected s or ms or frames or hh:mm:ss"),
        ({"segments": "0:12-0:15"}, "say --unit hh:mm:ss"),
    ],
)
def test_a_generic_time_whose_unit_is_not_told_is_refused(tmp_path: Path, row: Any, complaint: str) -> None:
    (error,) = parsed("generic", tmp_path / "a.jsonl", [{"video": "a.mp4", "question": "q"} | row])
    assert complaint in str(error)


def test_generic_reads_duration_and_names_the_columns_that_it_left_out(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "question": "q", "segments": "1-2", "duration": 12, "label": "x"}
    (read,) = imported("generic", tmp_path / "a.jsonl", [row])
    assert isinstance(read.parsed, GroundingQuery)
    assert (read.parsed.duration_s, read.unread) == (12.0, ("label",))
    (both,) = imported("generic", tmp_path / "a.csv", "video,question,segments,duration,duration_s\na.mp4,q,1-2,9,12\n")
    assert isinstance(both.parsed, GroundingQuery)
    assert (both.parsed.duration_s, both.unread) == (12.0, ("duration",))


def test_a_key_that_is_given_twice_loses_no_row_unsaid(tmp_path: Path) -> None:
    entry = json.dumps({"duration": 10, "timestamps": [[1, 2]], "sentences": ["x"]})
    with pytest.raises(DataError, match=r'the key "v_A" is given twice'):
        imported("activitynet", tmp_path / "a.json", f'{{"v_A": {entry}, "v_A": {entry}}}')
    line = json.dumps(MUSEG_ROW)[:-1] + ', "video": "b.mp4"}'
    assert 'the key "video" is given twice' in str(parsed("museg", tmp_path / "a.jsonl", line)[0])


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        (MUSEG_ROW | {"video": "\ud800"}, "'video' holds"),
        (MUSEG_ROW | {"idx": "\ud800"}, "'idx' holds"),
        (MUSEG_ROW | {"idx": True}, "'idx' holds"),
        (MUSEG_ROW | {"task": "slc"}, "'task' holds"),
        (MUSEG_ROW | {"duration": 0}, "'duration' holds"),
        (MUSEG_ROW | {"solution": [[1, None]]}, "'solution' holds"),
        (MUSEG_ROW | {"solution": [["1", "2"]]}, "'solution' holds"),
        (MUSEG_ROW | {"solution": [[1, 2, 3]]}, "'solution' holds"),
        (MUSEG_ROW | {"solution": [[True, 2]]}, "'solution' holds"),
        (MUSEG_ROW | {"solution": []}, "'solution' holds"),
    ],
)
def test_a_malformed_row_is_a_row_that_says_why(tmp_path: Path, row: Any, complaint: str) -> None:
    line = row if isinstance(row, str) else json.dumps(row)
    (bad, good) = imported("museg", tmp_path / "a.jsonl", f"{line}\n{json.dumps(MUSEG_ROW)}")
    assert complaint in str(bad.parsed)
    assert (bad.raw, bad.number) == (line, 1)
    assert isinstance(good.parsed, GroundingQuery)


def test_times_that_are_no_finite_numbers_are_left_to_the_rules(tmp_path: Path) -> None:
    line = json.dumps(MUSEG_ROW | {"solution": [[float("nan"), float("inf")], [-(10**400), 10**400]]})
    (query,) = parsed("museg", tmp_path / "a.jsonl", line)
    assert isinstance(query, GroundingQuery)
    assert str(query.segments) == "((nan, inf), (-inf, inf))"


BOM_FILES: dict[str, tuple[str, Any]] = {
    "museg": ("a.jsonl", MUSEG_ROW | {"video": " b/a.mp4 "}),
    "museg_eval": ("a.json", [{"video": " b/a.mp4", "question": "q", "groundtruth": [[1, 2]]}]),
    "et_bench": ("a.json", [BENCH | {"task": "tvg", "tgt": [1, 2], "q": "q", "video": "b/a.mp4\n"}]),
    "charades_sta": ("a.txt", "b/a 1 2##q"),
    "activitynet": ("a.json", {" b/a ": {"duration": 9, "timestamps": [[1, 2]], "sentences": ["q"]}}),
    "tacos": ("a.json", {" b/a.mp4": TACOS_ENTRY}),
    "qvhighlights": ("a.jsonl", {"qid": 1, "query": "q", "duration": 9, "vid": "b/a ", "relevant_windows": [[1, 2]]}),
    "generic": ("a.csv", 'video,question,segments\n" b/a.mp4 ",q,1-2\n'),
}


@pytest.mark.parametrize("importer", BOM_FILES)
def test_a_byte_order_mark_and_space_around_a_video_are_no_part_of_it(tmp_path: Path, importer: str) -> None:
    name, content = BOM_FILES[importer]
    text = content if isinstance(content, str) else json.dumps(content)
    (query,) = parsed(importer, tmp_path / name, "\ufeff" + text)
    assert isinstance(query, GroundingQuery), query
    assert query.video == "b/a.mp4"


@pytest.mark.parametrize("importer", IMPORTERS)
def test_a_file_that_cannot_be_read_as_a_whole_is_refused_by_name(tmp_path: Path, importer: str) -> None:
    path = tmp_path / "a.csv"
    for content in (None, b"\xff\x00"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.csv"):
            list(IMPORTERS[importer](path))


@pytest.mark.parametrize("importer", ["museg_eval", "et_bench", "et_instruct", "activitynet"])
@pytest.mark.parametrize("content", ["{", "3", "[" * 100_000])
def test_a_json_file_of_another_form_is_refused_by_name(tmp_path: Path, importer: str, content: str) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        imported(importer, tmp_path / "a.json", content)


def test_half_a_surrogate_pair_stays_an_escape(tmp_path: Path) -> None:
    (row,) = imported("museg_eval", tmp_path / "a.json", '[{"video": "\\ud800é"}]')
    assert row.raw == '{"video": "\\ud800é"}'


@pytest.mark.parametrize("importer", IMPORTERS)
def test_a_pipe_is_refused_and_not_waited_for(importer: str, tmp_path: Path) -> None:
    for name in ("a.json", "a.csv"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="It is no regular file"):
            list(IMPORTERS[importer](tmp_path / name))


def test_an_element_that_can_just_be_read_need_not_be_written(tmp_path: Path) -> None:
    """The reader and the writer of JSON come to their limits at other depths."""
    for depth in range(880, 1000):
        (tmp_path / "a.json").write_text("[" * depth + "]" * depth)
        with suppress(DataError):  # too deep to be read
            assert all(isinstance(row.parsed, DataError) for row in IMPORTERS["museg_eval"](tmp_path / "a.json"))


@pytest.mark.parametrize("importer", BOM_FILES)
def test_a_file_is_known_by_its_fields(tmp_path: Path, importer: str) -> None:
    name, content = BOM_FILES[importer]
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert guess_format(path) == importer


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[[[]]]", "3", "x,y\n1,2\n", "[" * 100_000])
@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_other_files_are_known_as_none(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert guess_format(path) is None
