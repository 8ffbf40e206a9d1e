"""The steps over parts that only note what they are asked: which phase, which data, what becomes of which response."""

import json
from pathlib import Path

import pytest

from museg_ray.config.learning import AlgoConfig
from museg_ray.config.schema import PhaseConfig
from museg_ray.errors import LearnerError, ParityError, RewardError, UnfitQueryError, VideoError
from museg_ray.metrics import names
from museg_ray.types import GroundingQuery
from tests.train.noting import PHASES, TEXTS, Run, queries


def every_query(stem: str) -> list[GroundingQuery]:
    """Those of one of the files of a `Run`."""
    return queries(stem, 9) + queries(stem, 9, 2)


@pytest.fixture
def three_phases(tmp_path: Path, tiny_model_dir: Path) -> Run:
    return Run(tmp_path, tiny_model_dir, PHASES, set()).to_end()


def test_weights_switch_exactly_at_the_step(three_phases: Run) -> None:
    assert three_phases.parts.weights == [PHASES[0].weights] * 4 + [PHASES[1].weights] * 4 + [PHASES[2].weights] * 2


def test_each_phase_draws_from_its_own_data(three_phases: Run) -> None:
    drawn = [row["query_id"] for row in three_phases.issued]
    assert [query_id.split("/")[0] for query_id in drawn] == ["main"] * 4 + ["other"] * 4 + ["main"] * 2
    assert [query_id[-1] for query_id in drawn[:8]].count("2") == 4
    assert [query_id[-1] for query_id in drawn[8:]] == ["1", "1"]  # its own share of multi-segment queries


def test_phases_that_share_a_file_do_not_repeat_its_queries(three_phases: Run) -> None:
    drawn = [row["query_id"] for row in three_phases.issued]
    assert len(set(drawn)) == len(drawn)


def test_the_learner_starts_a_phase_before_its_first_update_and_only_one_that_wants_something_fresh(
    three_phases: Run,
) -> None:
    assert three_phases.parts.started == [(2, "free")]


def test_a_response_without_a_score_leaves_its_group_and_goes_into_quarantine(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    phases = [PhaseConfig("only", 1)]
    drawn = Run(tmp_path, tiny_model_dir, phases, set()).to_end().issued
    run = Run(tmp_path, tiny_model_dir, phases, {(drawn[0]["query_id"], "bad")}).to_end()
    first, second = run.parts.updates[0]
    assert [response.text for response in first.responses] == ["good", "worse"]
    assert [reward.total for reward in first.rewards] == [1.0, pytest.approx(1 / 3)]
    assert first.advantages == pytest.approx([0.707, -0.707], abs=1e-3)
    assert len(second.responses) == 3
    assert run.results[0].metrics[names.REWARD_QUARANTINED] == 1.0
    (row,) = run.quarantined
    assert (row["query_id"], row["response_index"], row["text"]) == (drawn[0]["query_id"], 1, "bad")
    assert (row["step"], row["reasons"]) == (1, ["died", "died again"])
    assert [issue["outcome"] for issue in run.issued] == ["trained", "trained"]


def test_rloo_leaves_each_scored_response_out_of_its_own_baseline(tmp_path: Path, tiny_model_dir: Path) -> None:
    phases, algo = [PhaseConfig("only", 1)], AlgoConfig(advantage="rloo", scale_advantages=False)
    drawn = Run(tmp_path, tiny_model_dir, phases, set()).to_end().issued
    run = Run(tmp_path, tiny_model_dir, phases, {(drawn[0]["query_id"], "bad")}, algo=algo).to_end()
    first, second = run.parts.updates[0]
    # Rewards 1, 1/2 and 1/3, the second of them without a score in the first group.
    assert first.advantages == pytest.approx([1 - 1 / 3, 1 / 3 - 1])
    assert second.advantages == pytest.approx([1 - 5 / 12, 1 / 2 - 2 / 3, 1 / 3 - 3 / 4])


def test_a_group_with_fewer_than_two_scores_is_filtered_with_its_reason(tmp_path: Path, tiny_model_dir: Path) -> None:
    phases = [PhaseConfig("only", 1)]
    drawn = Run(tmp_path, tiny_model_dir, phases, set()).to_end().issued
    unscored = {(drawn[0]["query_id"], text) for text in ("bad", "worse")}
    run = Run(tmp_path, tiny_model_dir, phases, unscored).to_end()
    assert [scored.query.query_id for scored in run.parts.updates[0]] == [drawn[1]["query_id"]]
    assert [(row["outcome"], row["reason"]) for row in run.issued] == [
        ("filtered", "2 of its responses could not be scored, the last one: died again"),
        ("trained", ""),
    ]


def test_a_step_without_any_score_ends_the_run_and_says_where_the_texts_are(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    everything = {(query.query_id, text) for n in (1, 2) for query in queries("main", 9, n) for text in TEXTS}
    run = Run(tmp_path, tiny_model_dir, [PhaseConfig("only", 1)], everything)
    with pytest.raises(RewardError, match=r"could not be scored, the last one: died again.*quarantine\.jsonl"):
        run.to_end()
    assert [row["outcome"] for row in run.issued] == ["failed", "failed"]
    assert len(run.quarantined) == 6
    assert not run.parts.updates


def test_an_update_that_fails_ends_the_run_and_keeps_its_groups_for_inspection(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def diverged(*_: object) -> dict[str, float]:
        raise LearnerError("Loss or gradient was not finite.")

    run = Run(tmp_path, tiny_model_dir, [PhaseConfig("only", 1)], set())
    monkeypatch.setattr(run.parts, "update", diverged)
    with pytest.raises(LearnerError, match=r"not finite\. The groups of step 1 are in .*failed_update\.jsonl\.$"):
        run.to_end()
    rows = [json.loads(line) for line in (run.folder / "failed_update.jsonl").read_text().splitlines()]
    assert [row["query_id"] for row in rows] == [issue["query_id"] for issue in run.issued]
    first = rows[0]["responses"][0]
    assert (first["text"], first["reward"], first["token_ids"], first["logprobs"]) == (TEXTS[0], 1.0, [1], [0.0])
    assert first["advantage"] > 0
    assert [issue["outcome"] for issue in run.issued] == ["failed", "failed"]


def test_a_query_with_an_unreadable_video_is_accounted_for_and_the_run_goes_on(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    broken = three_phases.issued[0]["video"]
    run = Run(tmp_path, tiny_model_dir, PHASES, set(), {broken}).to_end()
    failed = [row for row in run.issued if row["video"] == broken]
    assert failed and all(row["outcome"] == "failed" and "is broken" in row["reason"] for row in failed)
    assert all(row["outcome"] == "trained" for row in run.issued if row["video"] != broken)
    assert {(row["video"], row["fault"]) for row in run.quarantined} == {(broken, "cut_off")}
    assert broken not in [scored.query.video for groups in run.parts.updates for scored in groups]
    assert sum(len(result.failures) for result in run.results) == len(failed)
    assert sum(result.metrics[names.VIDEO_UNREADABLE] for result in run.results) == len(failed)


def test_a_step_without_a_readable_video_makes_no_update_and_the_next_result_tells_of_it(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    first_step = {row["video"] for row in three_phases.issued if row["step"] == 1}
    run = Run(tmp_path, tiny_model_dir, PHASES, set(), first_step).to_end()
    assert run.results[0].step == 2
    assert run.results[0].metrics[names.VIDEO_UNREADABLE] >= 2
    assert [row["outcome"] for row in run.issued[:2]] == ["failed"] * 2
    assert len(run.parts.updates) == len(run.results)


def test_steps_in_a_row_without_a_readable_video_end_the_run(tmp_path: Path, tiny_model_dir: Path) -> None:
    everything = {f"{stem}{index}.mp4" for index in range(9) for stem in ("main", "other")}
    run = Run(tmp_path, tiny_model_dir, PHASES, set(), everything)
    with pytest.raises(VideoError, match="No video of the last 3 steps up to step 3 can be read"):
        run.to_end()
    assert [row["outcome"] for row in run.issued] == ["failed"] * 6


def test_a_query_without_room_is_set_aside_by_name_and_its_step_goes_on(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    long = three_phases.issued[0]["query_id"]
    run = Run(tmp_path, tiny_model_dir, PHASES, set())
    run.parts.too_long = {long}
    outcomes = [(row["query_id"], row["outcome"]) for row in run.to_end().issued]
    assert all((outcome == "failed") == (query_id == long) for query_id, outcome in outcomes)
    assert {(row["query_id"], row["fault"]) for row in run.quarantined} == {(long, "too_long")}
    assert [result.step for result in run.results] == [1, 2, 3, 4, 5]


def test_steps_in_a_row_of_queries_without_room_end_the_run(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = Run(tmp_path, tiny_model_dir, PHASES, set())
    run.parts.too_long = {query.query_id for stem in ("main", "other") for query in every_query(stem)}
    with pytest.raises(UnfitQueryError, match="No query of the last 3 steps up to step 3 can be sampled"):
        run.to_end()


def test_a_truth_of_which_too_little_lies_in_its_file_is_never_a_reward_of_0_and_others_are_cut(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    outside, over = (three_phases.issued[index] for index in (0, 1))
    truths = {query.query_id: query.segments for query in every_query("main")}
    ((_, over_s),) = truths[over["query_id"]][-1:]
    run = Run(tmp_path, tiny_model_dir, PHASES, set())
    run.parts.lasts_s = {outside["video"]: 0.1, over["video"]: over_s - 0.5}
    run.to_end()
    trained = {group.query.query_id: group.query.segments for groups in run.parts.updates for group in groups}
    assert outside["query_id"] not in trained and trained[over["query_id"]][-1][1] == over_s - 0.5
    faults = {row["query_id"]: row["fault"] for row in run.quarantined}
    assert faults[outside["query_id"]] == "beyond_file" and over["query_id"] not in faults
    told = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    texts = [event["text"] for event in told if event["kind"] == "truth"]
    assert len(texts) == len(set(texts)) and any(over["query_id"] in text for text in texts)


def test_every_video_is_prepared_ahead_in_the_order_of_its_use(three_phases: Run) -> None:
    drawn = [row["video"] for row in three_phases.issued]
    assert list(dict.fromkeys(three_phases.parts.ahead)) == list(dict.fromkeys(drawn))
    assert three_phases.parts.ahead[:6] == drawn[:6], "two steps ahead from the first on"


def test_a_clip_that_is_gone_when_it_is_sampled_is_prepared_once_more(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    run = Run(tmp_path, tiny_model_dir, PHASES, set())
    run.parts.gone_once = {row["video"] for row in three_phases.issued}
    run.to_end()
    assert all(row["outcome"] == "trained" for row in run.issued)
    assert not run.parts.gone_once


@pytest.mark.parametrize(("num_gone", "num_restarts"), [(1, 0), (2, 1)])
def test_a_clip_that_is_gone_when_the_learner_fetches_it_is_prepared_once_more(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path, num_gone: int, num_restarts: int
) -> None:
    """Gone for good, it takes training back, where its query fails by itself."""
    run = Run(tmp_path, tiny_model_dir, PHASES, set())
    run.parts.gone_at_learner = ["a.mp4"] * num_gone
    run.to_end()
    assert run.parts.steps == [1, 2, 3, 4, 5] and run.parts.num_restarts == num_restarts
    assert [row["query_id"] for row in run.issued] == [row["query_id"] for row in three_phases.issued]


def test_the_learner_is_told_the_number_of_each_step(three_phases: Run) -> None:
    assert three_phases.parts.steps == [1, 2, 3, 4, 5]


def test_a_run_that_goes_on_pushes_the_weights_first_and_makes_the_steps_that_are_left(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    resumed = Run(tmp_path, tiny_model_dir, PHASES, set(), goes_on=(three_phases, 3)).to_end()
    assert resumed.parts.pushed == [3, 4, 5]
    assert resumed.parts.steps == [4, 5]
    assert resumed.reached == three_phases.reached[3:]
    assert [row["query_id"] for row in resumed.issued] == [row["query_id"] for row in three_phases.issued]


def test_a_step_without_a_readable_video_is_kept_in_mind_when_the_run_goes_on(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    unreadable = {row["video"] for row in three_phases.issued if row["step"] <= 2}
    whole = Run(tmp_path, tiny_model_dir, PHASES, set(), unreadable).to_end()
    assert (whole.reached[1].num_empty, len(whole.reached[1].untold)) == (2, 4)
    resumed = Run(tmp_path, tiny_model_dir, PHASES, set(), unreadable, goes_on=(whole, 2)).to_end()
    assert resumed.parts.pushed == [1, 2, 3], "weights that were never updated are those of the model folder"
    told = [[(error.fault, str(error)) for error in run.results[0].failures] for run in (whole, resumed)]
    assert told[0] == told[1] and len(told[0]) == 4


def test_the_probe_looks_at_the_first_readable_query_and_leaves_no_trace(
    three_phases: Run, tmp_path: Path, tiny_model_dir: Path
) -> None:
    first = three_phases.issued[0]
    (probed,) = three_phases.parts.scored
    assert probed.query.query_id == first["query_id"]
    assert len(probed.responses) == len(TEXTS)
    assert len(three_phases.issued) == 10, "no issue of the ledger"
    run = Run(tmp_path, tiny_model_dir, PHASES, set(), {first["video"]}).to_end()
    (probed,) = run.parts.scored
    assert probed.query.query_id == three_phases.issued[1]["query_id"]


def test_a_gap_as_bfloat16_has_it_is_no_disagreement(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = Run(tmp_path, tiny_model_dir, PHASES, set())
    run.parts.gap = 0.03
    assert len(run.to_end().parts.updates) == sum(phase.steps for phase in PHASES)


@pytest.mark.parametrize("gap", [0.09, float("nan"), float("inf")])
def test_parts_that_disagree_are_found_before_anything_is_trained(
    gap: float, tmp_path: Path, tiny_model_dir: Path
) -> None:
    run = Run(tmp_path, tiny_model_dir, PHASES, set())
    run.parts.gap = gap
    with pytest.raises(ParityError, match=r"Before step 1.*model\.path"):
        run.to_end()
    assert not run.parts.updates and not run.issued
