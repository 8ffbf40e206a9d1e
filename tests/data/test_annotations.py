import json
import os
from pathlib import Path
from typing import Any

import pytest

from museg_ray.data.annotations import check_ids, check_videos, join_video, read_annotations, source_of
from museg_ray.errors import DataError
from museg_ray.files import is_url
from museg_ray.types import GroundingQuery

ROW = {"idx": 0, "problem": "the red circle is visible", "solution": [[1, 2.5]], "video": "a/b.mp4", "task": "tvg"}


def write(path: Path, *rows: Any) -> Path:
    """Rows that are text already are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_row_becomes_a_query(tmp_path: Path) -> None:
    row = ROW | {"idx": 7, "solution": [[5, 6], [1, 2.5]], "duration": 12, "task": "tal"}
    assert read_annotations(write(tmp_path / "stage_1.jsonl", row)) == [
        GroundingQuery(
            query_id="stage_1/7",
            video=str(tmp_path / "a/b.mp4"),
            question="the red circle is visible",
            segments=((1.0, 2.5), (5.0, 6.0)),
            duration_s=12.0,
            task="tal",
            source="a",
        )
    ]


@pytest.mark.parametrize("row", [ROW, ROW | {"duration": None}])
def test_the_duration_may_be_absent(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read_annotations(write(tmp_path / "a.jsonl", row))[0].duration_s is None


def test_relative_videos_start_from_the_root_and_absolute_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", ROW, ROW | {"idx": 1, "video": "/v/c.mp4"})
    assert [query.video for query in read_annotations(path, Path("/root"))] == ["/root/a/b.mp4", "/v/c.mp4"]
    monkeypatch.chdir(tmp_path)
    assert read_annotations(Path("a.jsonl"))[0].video == str(tmp_path / "a/b.mp4")


@pytest.mark.parametrize(
    ("root", "video", "joined"),
    [
        ("/root", "a/b.mp4", "/root/a/b.mp4"),
        ("/root/", "./b.mp4", "/root/b.mp4"),
        ("/root", "/v/b.mp4", "/v/b.mp4"),
        ("/root", "https://host/b.mp4", "https://host/b.mp4"),
        ("s3://bucket", "a/b.mp4", "s3://bucket/a/b.mp4"),
        ("s3://bucket/x/", "./b.mp4", "s3://bucket/x/b.mp4"),
        ("s3://bucket", "/v/b.mp4", "/v/b.mp4"),
        ("gs://bucket", "s3://other/b.mp4", "s3://other/b.mp4"),
    ],
)
def test_videos_are_joined_to_folders_and_to_urls(root: str, video: str, joined: str) -> None:
    assert join_video(root, video) == joined


def test_a_root_may_be_a_url_and_urls_are_not_looked_for_here(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW, ROW | {"idx": 1, "video": "https://host/c.mp4"})
    queries = read_annotations(path, "s3://bucket/x")
    assert [query.video for query in queries] == ["s3://bucket/x/a/b.mp4", "https://host/c.mp4"]
    check_videos(queries)


def test_the_source_is_the_folder_of_the_video() -> None:
    videos = ["videos/charades/A.mp4", "videos/et_instruct_164k/hacs/A.mp4", "videos/A.mp4", "A.mp4", "s3://b/tacos/A"]
    assert [source_of(video) for video in videos] == ["charades", "hacs", "", "", "tacos"]


def test_a_refusal_names_the_command_that_repairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`museg data import museg a\.jsonl --out DIR`"):
        read_annotations(write(tmp_path / "a.jsonl", ROW | {"solution": [[3, 1]]}))
    with pytest.raises(DataError, match=r"`museg data import museg a\.jsonl --out DIR --video-root /v`"):
        read_annotations(tmp_path / "a.jsonl", "/v")


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "", ROW, "  ", ROW | {"idx": "x"}, "{")
    with pytest.raises(DataError, match=rf"{path}:5: .*1 of 3"):
        read_annotations(path)


def test_text_need_not_be_ascii(tmp_path: Path) -> None:
    (query,) = read_annotations(write(tmp_path / "ä.jsonl", ROW | {"problem": "\u2028红色圆圈"}))
    assert (query.query_id, query.question) == ("ä/0", "\u2028红色圆圈")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", r"holds \[1\]; expected a JSON object"),
        *(({key: ROW[key] for key in ROW if key != name}, f"field '{name}' is missing") for name in ROW),
        (ROW | {"idx": None}, "field 'idx' holds null; expected a number or a text"),
        (ROW | {"idx": True}, "field 'idx' holds true"),
        (ROW | {"problem": " "}, "field 'problem' holds"),
        (ROW | {"problem": 3}, "field 'problem' holds 3; expected a text"),
        (ROW | {"video": ["a.mp4"]}, "field 'video' holds"),
        (ROW | {"video": ""}, "field 'video' holds"),
        (ROW | {"task": "other"}, "field 'task' holds \"other\"; expected tvg or tal"),
        (ROW | {"task": []}, "field 'task' holds"),
        (ROW | {"duration": 0}, "field 'duration' holds 0; expected seconds above 0"),
        (ROW | {"duration": "12"}, "field 'duration' holds"),
        (ROW | {"duration": float("nan")}, "field 'duration' holds NaN"),
        (ROW | {"solution": []}, r"field 'solution' holds \[\]; expected a list"),
        (ROW | {"solution": "1-2"}, "field 'solution' holds"),
        (ROW | {"solution": [1, 2]}, "field 'solution' holds 1"),
        (ROW | {"solution": [[1, 2, 3]]}, "field 'solution' holds"),
        (ROW | {"solution": [["1", "2"]]}, "field 'solution' holds"),
        (ROW | {"solution": [[False, True]]}, "field 'solution' holds"),
        (ROW | {"solution": [[0, 1], [38, 13]]}, r"holds \[38, 13\]; expected .* 0 <= start_s < end_s"),
        (ROW | {"solution": [[3, 3]]}, r"holds \[3, 3\]"),
        (ROW | {"solution": [[-1, 3]]}, r"holds \[-1, 3\]"),
        (ROW | {"solution": [[0, float("inf")]]}, r"holds \[0, Infinity\]"),
        (ROW | {"solution": [[float("nan"), 1]]}, r"holds \[NaN, 1\]"),
        (ROW | {"solution": [[0, 10**400]]}, "field 'solution' holds"),
        (ROW | {"solution": [[3, 9], [5, 6]]}, "field 'solution' breaks the rule overlapping: segments share 1 s"),
        (ROW | {"duration": 4, "solution": [[3, 4.5]]}, "past_end: .* ends 0.5 s after the video, which lasts 4 s"),
    ],
)
def test_a_malformed_row_is_refused_by_file_line_and_field(tmp_path: Path, row: Any, complaint: str) -> None:
    path = write(tmp_path / "a.jsonl", ROW | {"idx": 1}, row, "also bad")
    with pytest.raises(DataError, match=rf"^{path}:2: .*{complaint}.*Rows at fault: 2 of 3") as caught:
        read_annotations(path)
    assert len(str(caught.value)) < 500


def test_segments_may_touch_each_other_and_the_end_but_for_what_floats_leave(tmp_path: Path) -> None:
    row = ROW | {"solution": [[0.1, 0.1 + 0.2], [0.3, 0.7 + 0.1 + 1e-9]], "duration": 0.8}
    (query,) = read_annotations(write(tmp_path / "a.jsonl", row))
    assert query.segments == ((0.1, 0.1 + 0.2), (0.3, 0.7 + 0.1 + 1e-9))
    with pytest.raises(DataError, match="past_end"):
        read_annotations(write(tmp_path / "a.jsonl", row | {"solution": [[0.3, 0.80001]]}))


def test_a_byte_order_mark_and_space_around_a_video_are_no_part_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(ROW | {"video": " a/b.mp4 "}), encoding="utf-8")
    (query,) = read_annotations(tmp_path / "a.jsonl")
    assert (query.video, query.source) == (str(tmp_path / "a/b.mp4"), "a")


def test_urls_are_told_from_paths() -> None:
    assert all(map(is_url, ["s3://b/a.mp4", "https://h/a", "FILE:///a", "git+ssh://h"]))
    assert not any(map(is_url, ["a.mp4", "/v/a.mp4", "v/x://y.mp4", "://a", "3s://b", "a b://c", ""]))


def test_two_rows_of_one_idx_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'idx' repeats that of an earlier row"):
        read_annotations(write(tmp_path / "a.jsonl", ROW | {"idx": 1}, ROW | {"idx": "1"}))


def test_a_file_that_is_absent_or_empty_or_binary_is_refused_by_name(tmp_path: Path) -> None:
    for content, complaint in ((None, "No such file"), (b"\n \n", "has no rows"), (b"\xff\x00", "not UTF-8")):
        path = tmp_path / "a.jsonl"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=complaint) as caught:
            read_annotations(path)
        assert str(path) in str(caught.value)


def test_missing_videos_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    (tmp_path / "0.mp4").touch()
    rows = [ROW | {"idx": i, "video": f"{i % 6}.mp4"} for i in range(12)]
    queries = read_annotations(write(tmp_path / "a.jsonl", *rows))
    with pytest.raises(DataError, match=r"5 of 6: .*1\.mp4, .*2\.mp4, .*3\.mp4, …\. .*data\.video_root"):
        check_videos(queries)
    check_videos(queries[:1])


def test_two_files_with_a_query_of_the_same_id_are_refused_by_name(tmp_path: Path) -> None:
    files = [tmp_path / name / "train.jsonl" for name in ("stage_1", "stage_2")]
    for file in files:
        file.parent.mkdir()
    queries = {str(file): read_annotations(write(file, ROW | {"idx": 7})) for file in files}
    with pytest.raises(DataError, match=rf"{files[0]} and {files[1]} both hold a query train/7.*Rename"):
        check_ids(queries)
    check_ids({str(files[0]): queries[str(files[0])]})


@pytest.mark.parametrize("field", ["idx", "problem", "video"])
def test_half_a_surrogate_pair_is_refused_where_it_stands(tmp_path: Path, field: str) -> None:
    """JSON can tell of one, but no tokenizer and no table takes it: the run would end hours later."""
    path = write(tmp_path / "a.jsonl", json.dumps(ROW | {field: "a\ud800"}))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: field '{field}' holds \"a\\ud800\""):
        read_annotations(path)


def test_rows_nested_to_any_depth_are_refused(tmp_path: Path) -> None:
    """Also at the depth that can just be read, and is too deep to be written into the message."""
    for depth in (*range(880, 1000), 5_000, 100_000):
        for row in ("[" * depth + "]" * depth, f'{{"idx": {"[" * depth + "]" * depth}}}'):
            path = write(tmp_path / "a.jsonl", row, json.dumps(ROW)[:-1] + f', "duration": {row}}}')
            with pytest.raises(DataError, match=r"a\.jsonl:1: .*Rows at fault: 2 of 2"):
                read_annotations(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"Cannot read .*a\.jsonl: It is no regular file"):
        read_annotations(tmp_path / "a.jsonl")
