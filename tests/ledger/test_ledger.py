"""Every issue from its draw to its end, and how far the books of a run went."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from museg_ray.append_log import AppendLog, Watermark
from museg_ray.errors import CheckpointError, PoisonQueryError, ResourceError, VideoError, VideoFault
from museg_ray.ledger.ledger import Ledger, Outcome
from museg_ray.ledger.quarantine import Quarantine
from museg_ray.ledger.rollout_log import STEPS_PER_PART, PartsMark, RolloutLog
from museg_ray.types import GroundingQuery, Group, Issue, Response, RewardParts, Unscored, VersionSpan
from tests.whole_ledger import read_ledger

QUERY = GroundingQuery("train/7", "7.mp4", "it rains", ((1.0, 2.5),))


def an_issue(issue_id: int = 0, step: int = 1) -> Issue:
    return Issue(issue_id, QUERY, "free", seed=11, step=step)


def a_group(num_responses: int = 2, step: int = 1) -> Group:
    rewards = RewardParts(1.6, 0.6, 0.7, 0.65, 0.0, 1.0, ((1.0, 2.0),), (("recall", 0.5),))
    response = Response((1, 2, 3), np.zeros(3, np.float32), "text", True)
    advantages = np.linspace(-1, 1, num_responses, dtype=np.float32)
    responses, outcomes = (response,) * num_responses, (rewards,) * num_responses
    return Group(an_issue(step=step), "clip", 12.0, (1, 2), responses, 4, outcomes, advantages)


def test_an_issue_ends_exactly_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.issue([an_issue()])
    ledger.end(0, Outcome.TRAINED, weight_version=0)
    with pytest.raises(AssertionError, match="has ended already"):
        ledger.end(0, Outcome.TRAINED, weight_version=0)
    with pytest.raises(AssertionError, match="never issued"):
        ledger.end(1, Outcome.TRAINED)


def test_ids_are_given_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(AssertionError, match="issue 1 came where 0 was next"):
        ledger.issue([an_issue(1)])


@pytest.mark.parametrize("outcome", [Outcome.FILTERED, Outcome.FAILED])
def test_a_failed_or_filtered_group_needs_its_reason(outcome: Outcome, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.issue([an_issue()])
    with pytest.raises(AssertionError, match="without a reason"):
        ledger.end(0, outcome)


def test_the_rows_tell_of_every_issue_what_became_of_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.issue([an_issue(0), an_issue(1), an_issue(2, step=2)])
    ledger.end(1, Outcome.FAILED, reason="its video is cut off")
    ledger.end(0, Outcome.TRAINED, weight_version=3)
    rows = read_ledger(tmp_path / "ledger.jsonl")
    assert [(row.issue_id, row.step, row.outcome, row.weight_version, row.reason) for row in rows] == [
        (0, 1, "trained", 3, ""),
        (1, 1, "failed", None, "its video is cut off"),
        (2, 2, None, None, ""),
    ]
    assert all((row.query_id, row.video, row.phase) == ("train/7", "7.mp4", "free") for row in rows)
    assert rows[0].ended_unix_s is not None and rows[0].ended_unix_s >= rows[0].issued_unix_s


def test_what_has_ended_since_the_mark_is_open_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.issue([an_issue(0), an_issue(1)])
    ledger.end(0, Outcome.TRAINED, weight_version=0)
    mark = ledger.mark()
    ledger.end(1, Outcome.TRAINED, weight_version=0)
    ledger.issue([an_issue(2)])
    for each in (ledger, Ledger(tmp_path / "ledger.jsonl")):  # in the middle of a run, and by a process that resumes it
        each.rewind(mark)
        assert [issue.issue_id for issue in each.open_issues] == [1]
        assert each.num_issues == 2


def test_a_ledger_that_is_read_back_goes_on_after_its_last_issue(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.issue([an_issue(0), an_issue(1)])
    ledger.end(0, Outcome.TRAINED, weight_version=0)
    again = Ledger(tmp_path / "ledger.jsonl")
    assert (again.num_issues, [issue.issue_id for issue in again.open_issues]) == (2, [1])
    again.issue([an_issue(2)])
    again.end(1, Outcome.FAILED, "engine died")
    assert [row.outcome for row in read_ledger(tmp_path / "ledger.jsonl")] == ["trained", "failed", None]


def test_a_step_costs_the_same_however_many_issues_have_been(tmp_path: Path) -> None:
    path, written_bytes, inodes = tmp_path / "ledger.jsonl", list[int](), set[int]()
    ledger = Ledger(path)
    for step in range(100_000 // 100):
        ids = range(ledger.num_issues, ledger.num_issues + 100)
        ledger.issue([an_issue(issue_id, step) for issue_id in ids])
        for issue_id in ids:
            ledger.end(issue_id, Outcome.TRAINED, weight_version=step)
        written_bytes.append(path.stat().st_size - sum(written_bytes))
        assert not ledger.open_issues, "what has ended is kept in memory no more"
        inodes.add(path.stat().st_ino)
    assert len(inodes) == 1, "appended to, and never written anew"
    assert max(written_bytes) < 1.1 * written_bytes[0], "the digits of ids grow, and nothing else"
    assert Ledger(path).num_issues == 100_000


@pytest.mark.parametrize(
    "order",
    [(0, 1, 2, 2), (0, 2), (0, 0, 1, 2), (2, 0, 1), (1, 2)],
    ids=["ended twice", "one not issued", "issued twice", "ended before its issue", "the first lost"],
)
@pytest.mark.parametrize("read", [lambda path: Ledger(path).num_issues, read_ledger], ids=["Ledger", "read_ledger"])
def test_a_ledger_whose_events_do_not_fit_is_refused_by_line(
    order: tuple[int, ...], read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.issue([an_issue(0), an_issue(1)])
    ledger.end(1, Outcome.TRAINED, weight_version=0)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[index] for index in order))
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line \d is damaged"):
        read(path)


def test_a_line_that_is_no_event_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line 1 is damaged"):
        read_ledger(tmp_path / "ledger.jsonl")
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line 1 is damaged"):
        ledger.issue([an_issue(0)])
    ledger.rewind(Watermark())  # what comes after the mark may be anything
    ledger.issue([an_issue(0)])


def test_what_a_full_disk_did_not_take_has_not_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.issue([an_issue(0)])
    monkeypatch.setattr(AppendLog, "_write", lambda log, lines: os.write(os.open("/dev/full", os.O_WRONLY), lines))
    with pytest.raises(ResourceError):
        ledger.issue([an_issue(1)])
    with pytest.raises(ResourceError):
        ledger.end(0, Outcome.TRAINED, weight_version=0)
    monkeypatch.undo()
    assert [issue.issue_id for issue in ledger.open_issues] == [0]
    ledger.issue([an_issue(1)])
    ledger.end(0, Outcome.TRAINED, weight_version=0)
    assert Ledger(tmp_path / "ledger.jsonl").open_issues == ledger.open_issues


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def test_a_rollout_row_holds_what_its_reward_was_computed_from(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.append([a_group(step=3)])
    log.flush()
    first, second = rows_of(log.path)
    assert (first["step"], first["phase"], first["query_id"], first["weight_version"]) == (3, "free", "train/7", 4)
    assert first["truth"] == [{"start_s": 1.0, "end_s": 2.5}]
    assert first["predicted"] == [{"start_s": 1.0, "end_s": 2.0}]
    assert (first["reward_total"], first["reward_matching"], first["num_tokens"]) == (1.6, 0.65, 3)
    assert (first["reward_recall"], first["reward_tiou"]) == (0.5, None)
    assert [(row["response_index"], row["advantage"]) for row in (first, second)] == [(0, -1.0), (1, 1.0)]


def test_the_versions_of_tokens_are_logged_where_they_differ(tmp_path: Path) -> None:
    group = a_group()
    mixed = replace(group.responses[1], spans=(VersionSpan(4, 1), VersionSpan(5, 2)))
    group = replace(group, responses=(group.responses[0], mixed))
    assert group.oldest_version == 4
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.append([group])
    log.flush()
    spans = [row["spans"] for row in rows_of(log.path)]
    assert spans == [[], [{"version": 4, "num_tokens": 1}, {"version": 5, "num_tokens": 2}]]


def test_a_response_without_a_score_is_logged_at_its_place_with_nulls(tmp_path: Path) -> None:
    good, _, other = a_group(3).outcomes
    outcomes = (good, Unscored("text", ("died", "died")), other)
    partly = replace(a_group(3), outcomes=outcomes, advantages=np.array([-1, math.nan, 1], np.float32))
    assert [len(partly.for_update().responses), len(partly.rewards)] == [2, 2]
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.append([partly, replace(partly, advantages=np.empty(0, np.float32))])
    log.flush()
    rows = rows_of(log.path)
    assert [row["response_index"] for row in rows] == [0, 1, 2] * 2
    assert [row["reward_total"] for row in rows] == [1.6, None, 1.6] * 2
    assert [row["advantage"] for row in rows] == [-1.0, None, 1.0, None, None, None]


def test_rollouts_of_a_run_that_was_killed_can_be_read(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts.parquet")
    for step in range(1, STEPS_PER_PART + 3):
        log.append([a_group(step=step)])
    assert sorted({row["step"] for row in rows_of(log.path)}) == list(range(1, STEPS_PER_PART + 1))


def test_a_log_goes_back_to_its_mark_and_grows_from_there(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.append([a_group(step=1)])
    mark = log.mark()
    log.append([a_group(step=2)])
    log.flush()
    log.append([a_group(step=3)])  # in no part yet
    for each in (log, RolloutLog(log.path)):
        each.rewind(mark)
        each.rewind(PartsMark(**asdict(mark)))
        assert {row["step"] for row in rows_of(log.path)} == {1}
    log.rewind(mark)
    log.append([a_group(step=2)])
    assert log.mark().num_parts == 2
    assert {row["step"] for row in rows_of(log.path)} == {1, 2}
    assert [path.name for path in sorted(log.path.iterdir())] == ["part-000000.parquet", "part-000001.parquet"]


@pytest.mark.parametrize("change", ["lost", "cut off"])
def test_a_log_that_lacks_something_below_its_mark_is_refused(change: str, tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts.parquet")
    for step in (1, 2, 3):
        log.append([a_group(step=step)])
        mark = log.mark()
    log.append([a_group(step=4)])
    log.flush()
    part = log.path / "part-000001.parquet"
    part.unlink() if change == "lost" else part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"rollouts\.parquet holds \d+ bytes .* where it held \d+ then"):
        RolloutLog(log.path).rewind(mark)
    assert (log.path / "part-000003.parquet").is_file(), "nothing is deleted of what is refused"


def test_a_part_that_cannot_be_written_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.append([a_group()])
    monkeypatch.setattr(pq, "write_table", lambda table, path: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(ResourceError, match=r"part-000000\.parquet could not be written: No space left"):
        log.mark()
    monkeypatch.undo()
    assert log.mark().num_parts == 1, "what could not be written is still there"


def test_an_empty_log_writes_no_part(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts.parquet")
    assert log.mark() == PartsMark()
    assert list(log.path.iterdir()) == []


def test_quarantine_names_query_and_fault_and_goes_back(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    quarantine.add(a_group())
    assert not quarantine.path.exists(), "nothing is wrong with it"
    quarantine.add_query(an_issue(), VideoError("7.mp4 is cut off", VideoFault.CUT_OFF))
    mark = quarantine.mark()
    quarantine.add_query(an_issue(), PoisonQueryError("it ended two engines"))
    lines = quarantine.path.read_text().splitlines()
    assert ['"fault": "cut_off"' in lines[0], '"fault": "killed_engines"' in lines[1]] == [True, True]
    quarantine.rewind(mark)
    assert quarantine.path.read_text().splitlines() == lines[:1]
