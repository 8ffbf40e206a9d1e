"""What a run trains on and is measured by."""

import json
from pathlib import Path

import pytest

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import ConfigError, DataError
from museg_ray.train.queries import RunQueries, check_heldout, read_run_queries
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


def test_one_held_out_video_is_refused_before_training() -> None:
    queries = [GroundingQuery(f"h/{i}", "only.mp4", "it", ((1.0, 2.0),)) for i in range(3)]
    with pytest.raises(DataError, match="at least two"):
        check_heldout(RunQueries({}, queries))
