"""A run folder is taken back to a checkpoint: each of its files, also torn ones."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.checkpoints.state import DriverState, Notes, TrainerState
from museg_ray.errors import CheckpointError
from museg_ray.ledger.ledger import Ledger, Outcome, RolloutLog
from museg_ray.runs.rewind import remove_outputs, remove_partials, rewind
from tests.checkpoints.test_folder import build
from tests.ledger.test_ledger import QUERY, sampled_group

STEP, LAST = 4, 7


@pytest.fixture
def state() -> DriverState:
    notes = Notes(num_updates=STEP, num_responses=2 * STEP)
    return DriverState(TrainerState(STEP, "only", STEP, {}, 0, []), STEP, "reward/matching", None, notes.as_dict())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that was killed in its eighth step, after checkpoints of steps 2, 4 and 6, the last one damaged."""
    rollouts, ledger = RolloutLog(tmp_path / "rollouts.parquet"), Ledger()
    for step in range(1, LAST + 1):
        rollouts.append(step, "only", [sampled_group()])
        ledger.finish(ledger.issue(QUERY, step), Outcome.TRAINED, weight_version=step)
        if step % 2 == 0:
            rollouts.flush()
            checkpoints.publish(build(tmp_path / "checkpoints", step))
    rollouts.close()
    ledger.issue(QUERY, LAST + 1)
    ledger.write(tmp_path / "ledger.parquet")
    rows = [{"step": step, "reward/total": step / 3} for step in range(1, LAST + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "rew')
    (tmp_path / "quarantine.jsonl").write_text('{"step": 3}\n{"step": 5}\n{"step": 8')
    (tmp_path / "alarms.jsonl").write_text('{"first_step": 5, "last_step": 6}\n')
    (tmp_path / "evaluation").mkdir()
    for name in ("evaluation/before.jsonl", "evaluation/after.jsonl", "report.html", "curves.png", "config.yaml"):
        (tmp_path / name).touch()
    return tmp_path


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_everything_later_is_gone_and_everything_before_is_as_it_was(folder: Path, state: DriverState) -> None:
    before = _lines_of_ledger(folder)[:STEP]
    rows = rewind(folder, state)
    assert rows == _lines(folder / "metrics.jsonl") == [{"step": s, "reward/total": s / 3} for s in range(1, STEP + 1)]
    assert _lines(folder / "quarantine.jsonl") == [{"step": 3}]
    assert not (folder / "alarms.jsonl").exists()
    assert sorted(set(pq.read_table(folder / "rollouts.parquet")["step"].to_pylist())) == [1, 2, 3, 4]
    assert _lines_of_ledger(folder) == before
    assert [each.step for each in checkpoints.list_checkpoints(folder / "checkpoints")] == [2, 4]
    left = {path.name for path in folder.iterdir()}
    assert left.isdisjoint({"report.html", "curves.png", "summary.json", "model"})
    assert [path.name for path in (folder / "evaluation").iterdir()] == ["before.jsonl"]


def _lines_of_ledger(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "ledger.parquet").to_pylist()
    return rows


def test_going_back_twice_is_going_back_once(folder: Path, state: DriverState) -> None:
    rewind(folder, state)
    first = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rewind(folder, state)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == first


@pytest.mark.parametrize("lost", ["metrics.jsonl", "ledger.parquet", "rollouts.parquet/steps-000003-000004.parquet"])
def test_a_book_that_is_not_whole_is_refused(lost: str, folder: Path, state: DriverState) -> None:
    (folder / lost).unlink()
    with pytest.raises(
        CheckpointError, match=rf"{lost.split('/')[0]} holds .* up to step 4; at that step's checkpoint"
    ):
        rewind(folder, state)


def test_a_line_that_is_damaged_in_the_middle_is_refused(folder: Path, state: DriverState) -> None:
    (folder / "quarantine.jsonl").write_text('{"step": 3\n{"step": 4}\n')
    with pytest.raises(CheckpointError, match=r"quarantine.jsonl is damaged"):
        rewind(folder, state)


def test_what_a_crash_left_half_written_is_removed(folder: Path) -> None:
    build(folder / "checkpoints", 8)
    for name in (".ledger.parquet.0a.partial", "evaluation/.after.jsonl.0b.partial", "model.partial"):
        (folder / name).touch()
    whole = {path for path in folder.rglob("*") if "partial" not in str(path)}
    remove_partials(folder)
    assert set(folder.rglob("*")) == whole


def test_a_run_that_is_begun_anew_leaves_what_is_not_its_own(folder: Path) -> None:
    (folder / "slurm-17.out").touch()
    remove_outputs(folder)
    assert [path.name for path in folder.iterdir()] == ["slurm-17.out"]
