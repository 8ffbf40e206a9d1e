from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from museg_ray.ledger.ledger import STEPS_PER_PART, Ledger, Outcome, RolloutLog
from museg_ray.types import GroundingQuery, Response, ResponseGroup, RewardParts, SampledGroup, ScoredGroup, Unscored

QUERY = GroundingQuery("train/7", "/videos/7.mp4", "the red circle is visible", ((1.0, 2.5),))


def sampled_group(num_responses: int = 2) -> SampledGroup:
    response = Response((5, 6, 2), np.zeros(3, np.float32), "<answer>1.0-2.0</answer>", finished=True)
    reward = RewardParts(1.6, 0.6, 0.7, 0.65, 0.0, 1.0, predicted=((1.0, 2.0),), extras=(("recall", 0.5),))
    group = ResponseGroup(QUERY, "clip", 12.0, (1, 2), (response,) * num_responses, weight_version=4)
    rewards = (reward,) * num_responses
    scored = ScoredGroup(group, rewards, np.linspace(-1, 1, num_responses, dtype=np.float32))
    return SampledGroup(group, rewards, scored)


def test_every_issue_is_written_with_its_end(tmp_path: Path):
    ledger = Ledger()
    trained, failed, still_open = (ledger.issue(QUERY, step) for step in (1, 1, 2))
    ledger.finish(trained, Outcome.TRAINED, weight_version=0)
    ledger.finish(failed, Outcome.FAILED, reason="engine died")
    assert ledger.open_issues == (still_open,)
    ledger.write(tmp_path / "ledger.parquet")
    rows = pq.read_table(tmp_path / "ledger.parquet").to_pylist()
    assert [(row["step"], row["outcome"], row["reason"], row["weight_version"]) for row in rows] == [
        (1, "trained", "", 0),
        (1, "failed", "engine died", None),
        (2, None, "", None),
    ]
    assert {row["query_id"] for row in rows} == {"train/7"}


def test_the_same_query_issued_twice_has_two_lives():
    ledger = Ledger()
    first, second = ledger.issue(QUERY, 1), ledger.issue(QUERY, 9)
    ledger.finish(first, Outcome.TRAINED, weight_version=0)
    assert first != second
    assert ledger.open_issues == (second,)


def test_an_issue_ends_exactly_once():
    ledger = Ledger()
    issue = ledger.issue(QUERY, 1)
    ledger.finish(issue, Outcome.TRAINED, weight_version=0)
    with pytest.raises(AssertionError, match=r"train/7 already ended as trained"):
        ledger.finish(issue, Outcome.FAILED, reason="late")


def test_an_issue_that_was_never_opened_cannot_end():
    with pytest.raises(AssertionError, match="never opened"):
        Ledger().finish(0, Outcome.TRAINED)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.FILTERED])
def test_a_failed_or_filtered_group_needs_its_reason(outcome: Outcome):
    ledger = Ledger()
    issue = ledger.issue(QUERY, 1)
    with pytest.raises(AssertionError, match="without a reason"):
        ledger.finish(issue, outcome)


def test_a_ledger_written_again_replaces_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path):
    ledger = Ledger()
    for step in (1, 2):
        ledger.issue(QUERY, step)
        ledger.write(tmp_path / "ledger.parquet")
    assert pq.read_table(tmp_path / "ledger.parquet").num_rows == 2
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.parquet"]


def test_a_rollout_row_holds_what_its_reward_was_computed_from(tmp_path: Path):
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.append(3, "free", [sampled_group()])
    log.close()
    first, second = pq.read_table(tmp_path / "rollouts.parquet").to_pylist()
    assert (first["step"], first["phase"], first["query_id"], first["weight_version"]) == (3, "free", "train/7", 4)
    assert first["truth"] == [{"start_s": 1.0, "end_s": 2.5}]
    assert first["predicted"] == [{"start_s": 1.0, "end_s": 2.0}]
    assert (first["reward_total"], first["reward_matching"], first["num_tokens"]) == (1.6, 0.65, 3)
    assert (first["reward_recall"], first["reward_tiou"]) == (0.5, None)
    assert [(row["response_index"], row["advantage"]) for row in (first, second)] == [(0, -1.0), (1, 1.0)]


def test_a_response_without_a_score_is_logged_at_its_place_with_nulls(tmp_path: Path):
    three = sampled_group(3)
    good, _, other = three.outcomes
    scored = ScoredGroup(three.group, (good, other), np.array([-1, 1], dtype=np.float32))
    outcomes = (good, Unscored("text", ("died", "died")), other)
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.append(1, "free", [SampledGroup(three.group, outcomes, scored), SampledGroup(three.group, outcomes, None)])
    log.close()
    rows = pq.read_table(tmp_path / "rollouts.parquet").to_pylist()
    assert [row["response_index"] for row in rows] == [0, 1, 2] * 2
    assert [row["reward_total"] for row in rows] == [1.6, None, 1.6] * 2
    assert [row["advantage"] for row in rows] == [-1.0, None, 1.0, None, None, None]


def test_rollouts_of_a_run_that_was_killed_can_be_read(tmp_path: Path):
    log = RolloutLog(tmp_path / "rollouts.parquet")
    for step in range(1, STEPS_PER_PART + 3):
        log.append(step, "free", [sampled_group()])
    steps = pq.read_table(tmp_path / "rollouts.parquet", columns=["step"])["step"].to_pylist()
    assert sorted(set(steps)) == list(range(1, STEPS_PER_PART + 1))


def test_closing_writes_the_last_steps_and_an_empty_log_writes_none(tmp_path: Path):
    log = RolloutLog(tmp_path / "rollouts.parquet")
    log.close()
    assert list((tmp_path / "rollouts.parquet").iterdir()) == []
    log.append(1, "free", [sampled_group(), sampled_group(3)])
    log.close()
    assert pq.read_table(tmp_path / "rollouts.parquet").num_rows == 5


def test_a_ledger_that_is_read_back_goes_on_after_its_last_issue(tmp_path: Path):
    ledger = Ledger()
    ledger.finish(ledger.issue(QUERY, 1), Outcome.TRAINED, weight_version=0)
    ledger.finish(ledger.issue(QUERY, 1), Outcome.FAILED, reason="engine died")
    ledger.write(tmp_path / "ledger.parquet")
    again = Ledger.read(tmp_path / "ledger.parquet")
    assert (again.num_issues, again.open_issues) == (2, ())
    assert again.issue(QUERY, 2) == 2
    again.write(tmp_path / "again.parquet")
    rows = [pq.read_table(tmp_path / name).to_pylist() for name in ("ledger.parquet", "again.parquet")]
    assert rows[1][:2] == rows[0]


def test_a_flushed_log_has_no_part_from_before_and_after(tmp_path: Path):
    log = RolloutLog(tmp_path / "rollouts.parquet")
    for step in (1, 2, 3):
        log.append(step, "free", [sampled_group()])
        if step == 2:
            log.flush()
    log.flush()
    log.flush()
    parts = sorted(path.name for path in (tmp_path / "rollouts.parquet").iterdir())
    assert parts == ["steps-000001-000002.parquet", "steps-000003-000003.parquet"]
