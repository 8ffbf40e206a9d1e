"""`museg data prepare`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from museg_ray.cli.main import app
from museg_ray.config.load import load_config
from museg_ray.demo.corpus import ensure_corpus
from museg_ray.errors import VideoError
from tests.video.conftest import render_video
from tests.video.real_files import REAL_FILES

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def prepare(tmp_path: Path) -> list[str]:
    """The command's arguments for a corpus of three videos."""
    overrides = ["num_train_videos=2", "num_heldout_videos=1", f"dir={tmp_path}/corpus"]
    return [
        *("data", "prepare", "--config", str(REPOSITORY / "configs/demo.yaml"), f"video.store_dir={tmp_path}/frames"),
        *(f"data.synthetic.{override}" for override in overrides),
        *("--workers", "1", "--json", str(tmp_path / "unreadable.json")),
    ]


def printed(arguments: list[str]) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def test_every_video_is_decoded_once_and_the_unreadable_one_named(prepare: list[str], tmp_path: Path) -> None:
    config = load_config(REPOSITORY / "configs/demo.yaml", [item for item in prepare if item.startswith("data.s")])
    videos = sorted(ensure_corpus(config.data.synthetic, lambda done, total: None).train.parent.glob("videos/*.mp4"))
    assert len(videos) == 3
    assert "decoded now 3 there before 0" in printed(prepare)
    videos[0].write_bytes(b"no video")
    text = printed(prepare)
    assert "decoded now 0 there before 2" in text
    assert "unreadable: not_a_video 1" in text
    (row,) = json.loads((tmp_path / "unreadable.json").read_text())
    assert (row["video"], row["fault"]) == (str(videos[0]), "not_a_video")
    assert str(videos[0]) in row["reason"]


def test_without_a_readable_video_it_fails(prepare: list[str], tmp_path: Path) -> None:
    row = {"idx": 0, "problem": "q", "solution": [[1, 2]], "video": "absent.mp4", "task": "tvg"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    own = ["data.synthetic.num_train_videos=0", "data.multi_segment_share=0"]
    own += [f"data.{key}={tmp_path}/a.jsonl" for key in ("train", "heldout")]
    with pytest.raises(VideoError, match="None of the 1 videos can be read"):
        printed([*prepare, *own])
    assert json.loads((tmp_path / "unreadable.json").read_text())[0]["fault"] == "missing"


def test_a_video_that_begins_later_than_its_sound_is_told_of(prepare: list[str], tmp_path: Path) -> None:
    make = next(odd_file.make for odd_file in REAL_FILES if odd_file.name == "video after its sound")
    row = {"idx": 0, "problem": "q", "solution": [[1, 2]], "video": str(make(tmp_path)), "task": "tvg"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    own = ["data.synthetic.num_train_videos=0", "data.multi_segment_share=0"]
    own += [f"data.{key}={tmp_path}/a.jsonl" for key in ("train", "heldout")]
    assert "its video begins 2.00 s later than its sound" in printed([*prepare, *own])
    assert "2.00 s later" in json.loads((tmp_path / "unreadable.json").read_text())[0]["notice"]


def test_truths_that_their_videos_do_not_have_are_named(prepare: list[str], tmp_path: Path) -> None:
    video = str(render_video(tmp_path / "a.mp4", seconds=5))
    truths = {"outside": [[20.0, 28.0]], "over": [[4.0, 6.0]], "sound": [[1.0, 2.0]]}
    rows = [
        {"idx": idx, "problem": "q", "solution": truth, "video": video, "task": "tvg"} for idx, truth in truths.items()
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = ["data.synthetic.num_train_videos=0", "data.multi_segment_share=0", f"data.train={tmp_path}/a.jsonl"]
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[2]))
    text = printed([*prepare, *own, f"data.heldout={tmp_path}/b.jsonl"])
    assert "set aside: beyond_file 1 queries noted: beyond_file 1 queries" in text
    (row,) = json.loads((tmp_path / "unreadable.json").read_text())
    assert (row["query_id"], row["fault"]) == ("a/outside", "beyond_file")
