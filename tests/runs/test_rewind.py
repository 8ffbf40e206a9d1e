"""A run folder is taken back to a checkpoint: each of its books, also torn ones, and what lies beside them."""

import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.checkpoints.state import DriverState, Notes, TrainerState
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import CheckpointError, ResourceError, VideoError
from museg_ray.ledger.ledger import Outcome
from museg_ray.metrics import names
from museg_ray.runs.books import Books
from museg_ray.runs.rewind import remove_partials
from museg_ray.runs.step_result import StepResult
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.display import Display
from tests.checkpoints.test_folder import RUN_ID, build
from tests.checkpoints.test_folder import state as checkpoint_state
from tests.ledger.test_ledger import a_group, an_issue
from tests.whole_ledger import read_ledger

STEP, LAST = 4, 7


def open_books(folder: Path) -> Books:
    config = Config()
    config.train.phases, config.alarms.window_steps = [PhaseConfig("only", 9)], 3
    config.alarms.min_reward_std = 0.5
    display = Display("test", config.train.phases, 9, SafeConsole(file=StringIO()))
    return Books(config, folder, display, Notes(), RUN_ID)


def write_step(books: Books, step: int) -> DriverState:
    """A step with one issue that is trained, and one of the step after it that is left open."""
    issue_id = books.ledger.num_issues
    if step == 1:
        books.ledger.issue([an_issue(0)])
        issue_id = 1
    books.ledger.issue([an_issue(issue_id, step + 1)])
    books.ledger.end(issue_id - 1, Outcome.TRAINED, weight_version=step)
    books.quarantine.add_query(an_issue(0, step), VideoError(f"gone at {step}"))
    metrics = {
        names.REWARD_MATCHING: step / 3,
        names.REWARD_STD: 0.0,
        names.REWARD_QUARANTINED: 0.0,
        names.ROLLOUT_RESPONSES_PER_S: 2.0,
    }
    books.on_step(StepResult(step, "only", [replace(a_group(), issue=an_issue(0, step))], [], metrics))
    return books.at_checkpoint(TrainerState(step, "only", step, step + 1, {}, {}, 0, []))


@pytest.fixture
def run(tmp_path: Path) -> tuple[Books, Path, DriverState]:
    """Books after seven steps, checkpoints of steps 2, 4 and 6, and the state of the one of step 4."""
    books, states = open_books(tmp_path), {}
    for step in range(1, LAST + 1):
        states[step] = write_step(books, step)
        if step % 2 == 0:
            checkpoints.publish(build(tmp_path / "checkpoints", step))
    (tmp_path / "evaluation").mkdir()
    for name in ("evaluation/before.jsonl", "evaluation/after.jsonl", "report.html", "curves.png", "config.yaml"):
        (tmp_path / name).touch()
    return books, tmp_path, states[STEP]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def check_is_at_step(folder: Path, step: int) -> None:
    assert [row["step"] for row in lines(folder / "metrics.jsonl")] == list(range(1, step + 1))
    assert [row["step"] for row in lines(folder / "quarantine.jsonl")] == list(range(1, step + 1))
    assert all(row["last_step"] <= step for row in lines(folder / "alarms.jsonl"))
    logged = pq.read_table(folder / "rollouts.parquet")["step"].to_pylist() if step else []
    assert sorted(set(logged)) == list(range(1, step + 1))
    ends = [row.outcome for row in read_ledger(folder / "ledger.jsonl")]
    assert ends == (["trained"] * step + [None] if step else [])


@pytest.mark.parametrize("is_resumed", [True, False], ids=["by another process", "in the middle of a run"])
def test_everything_later_is_gone_and_everything_before_is_as_it_was(
    is_resumed: bool, run: tuple[Books, Path, DriverState]
) -> None:
    books, folder, state = run
    events = lines(folder / "events.jsonl")
    if is_resumed:
        books.close()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 8, "rew')
        books = open_books(folder)
    left_open = books.rewind(state)
    assert [issue.issue_id for issue in left_open] == [STEP]
    check_is_at_step(folder, STEP)
    assert [each.step for each in checkpoints.list_checkpoints(folder / "checkpoints")] == [2, 4]
    assert (folder / "checkpoints" / "step-000006.set-aside" / "manifest.json").is_file()
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert left >= {"report.html", "curves.png", "evaluation/before.jsonl", "evaluation/after.jsonl"}
    assert lines(folder / "events.jsonl")[: len(events)] == events, "what happened to the run stays"
    write_step(books, STEP + 1)
    check_is_at_step(folder, STEP + 1)


def test_alarms_are_those_of_the_steps_that_stay(run: tuple[Books, Path, DriverState]) -> None:
    books, folder, state = run
    raised = lines(folder / "alarms.jsonl")
    assert [(row["name"], row["last_step"]) for row in raised] == [("variance_collapse", 3)]
    books.rewind(state)
    write_step(books, STEP + 1)
    assert lines(folder / "alarms.jsonl") == raised, "it was raised before, and holds"
    assert books.raised_alarms == ["variance_collapse"]
    books.rewind(None)
    assert books.raised_alarms == []
    for step in (1, 2, 3):
        write_step(books, step)
    assert lines(folder / "alarms.jsonl") == raised, "all over again"


def test_to_the_beginning_is_to_empty_books(run: tuple[Books, Path, DriverState]) -> None:
    books, folder, _ = run
    assert list(books.rewind(None)) == []
    check_is_at_step(folder, 0)
    assert not (folder / "metrics.jsonl").exists() and books.ledger.num_issues == 0
    write_step(books, 1)
    check_is_at_step(folder, 1)


def test_going_back_twice_is_going_back_once(run: tuple[Books, Path, DriverState]) -> None:
    books, folder, state = run
    books.rewind(state)
    kept = ("metrics.jsonl", "alarms.jsonl", "ledger.jsonl", "quarantine.jsonl")
    first = [lines(folder / name) for name in kept]
    books.rewind(state)
    assert [lines(folder / name) for name in kept] == first


def test_notes_go_back_and_the_time_that_was_spent_does_not(run: tuple[Books, Path, DriverState]) -> None:
    books, _, state = run
    notes = books._notes
    notes.wall_s["train"] = 100.0
    assert notes.num_updates == LAST
    books.rewind(state)
    assert (notes.num_updates, notes.num_responses, notes.wall_s["train"]) == (STEP, 2 * STEP, 100.0)


@pytest.mark.parametrize(
    "lost",
    ["metrics.jsonl", "alarms.jsonl", "quarantine.jsonl", "ledger.jsonl", "rollouts.parquet/part-000002.parquet"],
)
def test_invariant_no_book_is_cut_before_all_of_them_are_found_whole(
    lost: str, run: tuple[Books, Path, DriverState]
) -> None:
    books, folder, state = run
    books.close()
    (folder / lost).unlink()
    for name in ("metrics.jsonl", "ledger.jsonl"):
        if name != lost:
            with (folder / name).open("a") as file:
                file.write('{"torn')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=rf"{lost.split('/')[0]} .*checkpoint"):
        open_books(folder).rewind(state)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_file_that_cannot_be_deleted_says_what_to_do(
    run: tuple[Books, Path, DriverState], monkeypatch: pytest.MonkeyPatch
) -> None:
    books, folder, state = run
    monkeypatch.setattr(Path, "unlink", lambda path, **_: os.open("/dev/null/x", os.O_RDONLY))
    with pytest.raises(ResourceError, match=rf"{folder} could not be written: Not a directory"):
        books.rewind(state)
    monkeypatch.undo()
    assert [issue.issue_id for issue in books.rewind(state)] == [STEP]


def test_what_a_crash_left_half_written_is_removed_and_nothing_that_only_looks_so(
    run: tuple[Books, Path, DriverState],
) -> None:
    folder = run[1]
    kept = ["download.partial", "evaluation/x.partial", ".notes.partial", "model.partial/config.json"]
    kept += [
        "tensorboard/.a.0123456789abcdef.partial",
        "checkpoints/epoch3.partial/driver.json",
        "model.old/config.json",
    ]
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "linked").mkdir()
    (folder / ".linked.0123456789abcdef.partial").symlink_to(folder / "linked")
    whole = set(folder.rglob("*"))
    build(folder / "checkpoints", 8)
    half = [".config.yaml.0123456789abcdef.partial", "evaluation/.after.jsonl.0123456789abcdef.partial"]
    for name in (*half, ".model.0123456789abcdef.partial/model-00001-of-00002.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    remove_partials(folder, RUN_ID)
    assert set(folder.rglob("*")) == whole


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl", "rollouts.parquet"])
def test_a_book_that_is_a_link_is_refused_and_what_it_leads_to_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "thesis.txt").write_text("no end of line")
    (tmp_path / "run" / name).symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(ResourceError, match=rf"{name} is a symbolic link, to .*thesis.txt"):
        open_books(tmp_path / "run")
    assert (tmp_path / "thesis.txt").read_text() == "no end of line"


def test_what_bears_another_name_than_the_runs_own_is_not_set_aside(run: tuple[Books, Path, DriverState]) -> None:
    books, folder, state = run
    (folder / "elsewhere").mkdir()
    checkpoints.publish(build(folder / "elsewhere", 8))
    (folder / "checkpoints" / "step-000008").symlink_to(folder / "elsewhere" / "step-000008")
    other = build(folder / "checkpoints", 9)
    (other / "driver.json").write_text(replace(checkpoint_state(9), run_id="another").to_json())
    checkpoints.publish(other)
    books.rewind(state)
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert left == {"step-000002", "step-000004", "step-000006.set-aside", "step-000008", "step-000009"}
