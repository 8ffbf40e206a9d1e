"""What a run trains on and is measured by."""

import json
import random
from pathlib import Path

import pytest

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import CheckpointError, ConfigError, DataError
from museg_ray.ledger.ledger import OpenIssue
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.train.data_changes import BLOCK_BYTES, _sampled_hash
from museg_ray.train.issues import IssueSource
from museg_ray.train.queries import RunQueries, check_heldout, overlong, read_run_queries
from museg_ray.types import GroundingQuery


def write(path: Path, num_rows: int) -> str:
    rows = [
        {"idx": i, "problem": "q", "solution": [[1, 2]], "video": f"{i}.mp4", "task": "tvg"} for i in range(num_rows)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def config_of(tmp_path: Path) -> Config:
    config = Config()
    config.data.train, config.data.heldout = write(tmp_path / "a.jsonl", 3), write(tmp_path / "h.jsonl", 10)
    config.data.multi_segment_share = 0.0
    config.train.phases = [PhaseConfig("one", 1), PhaseConfig("two", 1, train=write(tmp_path / "b.jsonl", 2))]
    return config


def read(config: Config) -> RunQueries:
    return read_run_queries(config, lambda done, total: None)


def test_queries_come_by_the_file_that_a_phase_names(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    queries = read(config)
    assert {path: len(rows) for path, rows in queries.train.items()} == {
        config.data.train: 3,
        config.train.phases[1].train: 2,
    }
    assert len(queries.all_train) == 5 and len(list(queries)) == 15


def test_held_out_queries_are_spread_over_the_file(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.evaluation.num_queries = 5
    assert [query.query_id for query in read(config).heldout] == [f"h/{i}" for i in (0, 2, 4, 6, 8)]


def test_a_run_without_held_out_queries_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config.data.heldout = ""
    with pytest.raises(ConfigError, match=r"data\.heldout is empty"):
        read(config)


def test_an_open_issue_whose_query_is_gone_says_what_to_do(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    source = IssueSource(config, read(config).train)
    assert [issue.issue_id for issue in source.reopened([OpenIssue(4, "a/2", "2.mp4", "one", 1)])] == [4]
    with pytest.raises(
        CheckpointError, match=r"query a/3 open, but .*a.jsonl .* put its row back, or .*run.restart=true"
    ):
        source.reopened([OpenIssue(5, "a/3", "3.mp4", "one", 1)])


@pytest.mark.parametrize("size_bytes", [0, 100, 40_000, 5 << 20, 64 << 20])
def test_a_model_file_is_told_from_another_one_by_samples(size_bytes: int, tmp_path: Path) -> None:
    """A change of one 256th of it, or of its size, is seen wherever it is."""
    file = tmp_path / "model.safetensors"

    def written(content: bytes) -> str:
        file.write_bytes(content)
        return _sampled_hash(file)

    content, changed = random.Random(0).randbytes(size_bytes), size_bytes // 256 + BLOCK_BYTES
    starts = (0, size_bytes // 3, size_bytes // 2) if size_bytes > changed else ()
    others = [content[:start] + bytes(changed) + content[start + changed :] for start in starts]
    hashes = [written(each) for each in (content, content + b"x", *others)]
    assert len(set(hashes)) == len(hashes) and written(content) == hashes[0]


def test_one_held_out_video_is_refused_before_training() -> None:
    queries = [GroundingQuery(f"h/{i}", "only.mp4", "it", ((1.0, 2.0),)) for i in range(3)]
    with pytest.raises(DataError, match="at least two"):
        check_heldout(RunQueries({}, queries))


def test_questions_without_room_are_counted_at_the_start_and_a_file_of_such_alone_is_refused(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    config, tokenizer = config_of(tmp_path), load_tokenizer(tiny_model_dir)
    assert overlong(config, read(config), tokenizer) == []
    rows = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    rows[1]["problem"] = "it happens " * 5000
    Path(config.data.train).write_text("\n".join(json.dumps(row) for row in rows))
    (warning,) = overlong(config, read(config), tokenizer)
    assert warning.startswith(f"1 of 3 questions of {config.data.train} have no room: the longest has ")
    assert "its answer may have 1024, and model.max_tokens is 4096; the first is a/1. They are set aside" in warning
    config.model.max_tokens = 1024
    with pytest.raises(DataError, match=r"3 of 3 questions of .*a\.jsonl have no room.*Raise model\.max_tokens"):
        overlong(config, read(config), tokenizer)
