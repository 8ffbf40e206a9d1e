import json
import pickle
from collections.abc import Iterable, Mapping

import pytest

from museg_ray.config.schema import AlarmConfig, PhaseConfig, RewardWeights
from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm, AlarmWatch, alarm_name

WINDOW = 4
PHASES = [PhaseConfig("timestamps", 10, weights=RewardWeights(timestamp=1.0)), PhaseConfig("free", 10)]
HEALTHY = {
    names.REWARD_MATCHING: 0.6,
    names.REWARD_TIMESTAMP: 0.9,
    names.REWARD_FORMAT: 0.95,
    names.REWARD_STD: 0.3,
    names.ROLLOUT_TRUNCATED_SHARE: 0.02,
    names.ANSWER_SINGLE_SEGMENT_SHARE: 0.3,
    names.ANSWER_SAME_SHARE: 0.05,
    names.ANSWER_FULL_LENGTH_SHARE: 0.0,
    names.LEARNER_SKIPPED: 0.0,
    names.PARITY_GAP_MEAN: 0.01,
}
Row = tuple[int, str, Mapping[str, float]]


def watch(**limits: float) -> AlarmWatch:
    return AlarmWatch(AlarmConfig(**({"window_steps": WINDOW} | limits)), PHASES)


def rows(metric: str, values: Iterable[float], phase: str = "timestamps", first_step: int = 1) -> list[Row]:
    """Healthy steps but for one metric."""
    return [(first_step + i, phase, HEALTHY | {metric: value}) for i, value in enumerate(values)]


def raised(alarms: AlarmWatch, steps: Iterable[Row]) -> list[Alarm]:
    return [alarm for row in steps for alarm in alarms.observe(*row)]


def spans(alarms: Iterable[Alarm]) -> list[tuple[str, int, int]]:
    return [(alarm.name, alarm.first_step, alarm.last_step) for alarm in alarms]


@pytest.mark.parametrize(
    ("metric", "value", "name", "saw"),
    [
        (
            names.ANSWER_SINGLE_SEGMENT_SHARE,
            0.956,
            "single_segment",
            "95.6 % of the valid answers to multi-segment queries name one segment, above 90 %",
        ),
        (names.REWARD_TIMESTAMP, 0.012, "timestamp_stuck", "r_T is 0.012 on average, below 0.05"),
        (
            names.REWARD_STD,
            0.004,
            "variance_collapse",
            "the rewards of a group deviate by 0.0040 on average, below 0.05",
        ),
        (
            names.ROLLOUT_TRUNCATED_SHARE,
            0.25,
            "truncated",
            "25.0 % of the responses are cut by the length limit, above 20 %",
        ),
        (
            names.ANSWER_SAME_SHARE,
            0.75,
            "video_blind",
            "75.0 % of the valid answers are one and the same, given for different videos, above 50 %",
        ),
        (
            names.ANSWER_FULL_LENGTH_SHARE,
            1.0,
            "video_blind",
            "100.0 % of the valid answers cover a whole video whose truth does not, above 50 %",
        ),
    ],
)
def test_a_metric_past_its_limit_raises_its_alarm_with_steps_and_numbers(
    metric: str, value: float, name: str, saw: str
):
    (alarm,) = raised(watch(), rows(metric, [value] * 7))
    assert (alarm.name, alarm.first_step, alarm.last_step, alarm.saw) == (name, 1, WINDOW, saw)
    assert alarm.steps == "steps 1 to 4"
    assert alarm.check


def test_a_fall_of_matching_below_the_end_of_the_phase_before_raises_an_alarm():
    before = rows(names.REWARD_MATCHING, [0.2] * 3 + [0.6] * 4)
    after = rows(names.REWARD_MATCHING, [0.5] * 4, "free", first_step=8)
    (alarm,) = raised(watch(), before + after)
    assert spans([alarm]) == [("matching_falls", 8, 11)]
    assert alarm.saw == ("r_M is 0.500 on average, 0.100 below the end of the phase before (0.600); the limit is 0.05")


def test_a_fall_of_format_below_its_best_window_raises_an_alarm_also_in_a_later_phase():
    before = rows(names.REWARD_FORMAT, [0.9] * 4 + [0.8] * 4)
    after = rows(names.REWARD_FORMAT, [0.7] * 4, "free", first_step=9)
    (alarm,) = raised(watch(format_drop=0.15), before + after)
    assert spans([alarm]) == [("format_falls", 9, 12)]
    assert alarm.saw == "r_F is 0.700 on average, 0.200 below its best window (0.900); the limit is 0.15"


def test_a_single_step_with_a_skipped_update_raises_an_alarm_until_a_step_has_none():
    alarms, new, states = watch(), [], []
    for row in rows(names.LEARNER_SKIPPED, [0.0, 2.0, 1.0, 0.0, 1.0]):
        new += alarms.observe(*row)
        states.append(alarms.states()[names.ALARM_SKIPPED_UPDATES])
    assert spans(new) == [("skipped_updates", 2, 2), ("skipped_updates", 5, 5)]
    assert states == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert new[0].saw == ("updates of the step left out because loss or gradient was not finite: 2; the limit is 0")
    assert new[0].steps == "step 2"


def test_skipped_updates_up_to_the_limit_are_borne():
    assert raised(watch(max_skipped_updates=2), rows(names.LEARNER_SKIPPED, [2.0] * 5)) == []
    assert spans(raised(watch(max_skipped_updates=2), rows(names.LEARNER_SKIPPED, [2.0, 3.0]))) == [
        ("skipped_updates", 2, 2)
    ]


def test_a_new_phase_raises_an_alarm_about_its_own_skipped_updates():
    run = rows(names.LEARNER_SKIPPED, [0.0, 1.0]) + rows(names.LEARNER_SKIPPED, [1.0, 1.0], "free", first_step=3)
    assert spans(raised(watch(), run)) == [("skipped_updates", 2, 2), ("skipped_updates", 3, 3)]


def test_a_run_that_does_not_count_skipped_updates_has_no_alarm_about_them():
    without = {name: value for name, value in HEALTHY.items() if name != names.LEARNER_SKIPPED}
    alarms = watch()
    assert raised(alarms, [(step, "free", without) for step in range(1, 9)]) == []
    assert alarms.states()[names.ALARM_SKIPPED_UPDATES] == 0.0


def test_a_healthy_run_raises_nothing():
    improving = [
        (step, "timestamps" if step <= 10 else "free", HEALTHY | {names.REWARD_MATCHING: 0.5 + 0.01 * step})
        for step in range(1, 21)
    ]
    alarms = watch()
    assert raised(alarms, improving) == []
    assert alarms.states() == dict.fromkeys(names.ALARMS, 0.0)


@pytest.mark.parametrize(
    ("metric", "limit"),
    [
        (names.ANSWER_SINGLE_SEGMENT_SHARE, 0.9),
        (names.REWARD_TIMESTAMP, 0.05),
        (names.REWARD_STD, 0.05),
        (names.ROLLOUT_TRUNCATED_SHARE, 0.2),
        (names.ANSWER_SAME_SHARE, 0.5),
        (names.ANSWER_FULL_LENGTH_SHARE, 0.5),
        (names.LEARNER_SKIPPED, 0.0),
    ],
)
def test_a_metric_at_its_limit_is_not_past_it(metric: str, limit: float):
    assert raised(watch(window_steps=20), rows(metric, [limit] * 20)) == []


def test_nothing_is_raised_before_a_phase_has_a_full_window():
    stuck = rows(names.REWARD_TIMESTAMP, [0.0] * (WINDOW - 1))
    assert raised(watch(), stuck) == []
    assert spans(raised(watch(), [*stuck, (WINDOW, "timestamps", HEALTHY | {names.REWARD_TIMESTAMP: 0.0})])) == [
        ("timestamp_stuck", 1, WINDOW)
    ]


def test_only_the_last_steps_count_so_an_alarm_comes_when_their_mean_passes_the_limit():
    assert raised(watch(), rows(names.ROLLOUT_TRUNCATED_SHARE, [0.0] * 4 + [0.3] * 2)) == []
    assert spans(raised(watch(), rows(names.ROLLOUT_TRUNCATED_SHARE, [0.0] * 4 + [0.3] * 3))) == [("truncated", 4, 7)]


def test_a_window_holds_only_steps_that_recorded_the_metric():
    without = {name: value for name, value in HEALTHY.items() if name != names.ANSWER_SINGLE_SEGMENT_SHARE}
    single = HEALTHY | {names.ANSWER_SINGLE_SEGMENT_SHARE: 1.0}
    steps = [(step, "timestamps", single if step % 2 else without) for step in range(1, 9)]
    assert spans(raised(watch(), steps)) == [("single_segment", 1, 7)]


def test_a_window_never_reaches_over_a_change_of_phase():
    before = rows(names.ROLLOUT_TRUNCATED_SHARE, [0.9] * (WINDOW - 1))
    after = rows(names.ROLLOUT_TRUNCATED_SHARE, [0.9] * (WINDOW - 1), "free", first_step=WINDOW)
    assert raised(watch(), before + after) == []


def test_uncited_times_are_no_failure_where_the_phase_does_not_weigh_them():
    assert raised(watch(), rows(names.REWARD_TIMESTAMP, [0.0] * 10, "free")) == []


def test_matching_is_compared_with_nothing_after_a_phase_shorter_than_a_window():
    before = rows(names.REWARD_MATCHING, [0.9] * (WINDOW - 1))
    after = rows(names.REWARD_MATCHING, [0.1] * WINDOW, "free", first_step=WINDOW)
    assert raised(watch(), before + after) == []


def test_matching_is_compared_over_a_phase_too_short_for_a_window_of_its_own():
    phases = [*PHASES[:1], PhaseConfig("short", WINDOW - 1), PhaseConfig("last", 10)]
    alarms = AlarmWatch(AlarmConfig(window_steps=WINDOW), phases)
    high = rows(names.REWARD_MATCHING, [0.9] * WINDOW)
    low = rows(names.REWARD_MATCHING, [0.1] * (WINDOW - 1), "short", 5) + rows(
        names.REWARD_MATCHING, [0.1] * WINDOW, "last", 8
    )
    assert spans(raised(alarms, high + low)) == [("matching_falls", 8, 11)]


@pytest.mark.parametrize(("metric", "weight"), [(names.REWARD_MATCHING, "matching"), (names.REWARD_FORMAT, "format")])
def test_a_part_that_the_phase_does_not_weigh_may_fall(metric: str, weight: str):
    def fallen(weights: RewardWeights) -> list[Alarm]:
        alarms = AlarmWatch(AlarmConfig(window_steps=WINDOW), [PHASES[0], PhaseConfig("other", 10, weights=weights)])
        return raised(alarms, rows(metric, [0.9] * WINDOW) + rows(metric, [0.1] * WINDOW, "other", 5))

    assert len(fallen(RewardWeights())) == 1
    assert fallen(RewardWeights(**{weight: 0.0})) == []


def test_an_alarm_is_raised_once_and_again_only_after_it_was_over():
    alarms = watch()
    values = [0.5] * 6 + [0.0] * 4 + [0.9] * 6
    assert spans(raised(alarms, rows(names.ROLLOUT_TRUNCATED_SHARE, values))) == [
        ("truncated", 1, 4),
        ("truncated", 8, 11),
    ]


def test_an_alarm_that_still_holds_is_raised_again_by_the_next_phase_once_its_window_is_full():
    alarms = watch()
    before = rows(names.ROLLOUT_TRUNCATED_SHARE, [0.9] * 5)
    after = rows(names.ROLLOUT_TRUNCATED_SHARE, [0.9] * 5, "free", first_step=6)
    assert spans(raised(alarms, before + after[:1])) == [("truncated", 1, 4)]
    assert alarms.states()[names.ALARM_TRUNCATED] == 0.0
    assert spans(raised(alarms, after[1:])) == [("truncated", 6, 9)]


def test_states_are_one_for_as_long_as_an_alarm_holds():
    alarms, states = watch(), []
    for row in rows(names.REWARD_STD, [0.0] * 5 + [0.3] * 2):
        alarms.observe(*row)
        states.append(alarms.states()[names.ALARM_VARIANCE_COLLAPSE])
    assert states == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_both_signs_of_blindness_are_one_alarm():
    blind = HEALTHY | {names.ANSWER_SAME_SHARE: 0.8, names.ANSWER_FULL_LENGTH_SHARE: 0.9}
    (alarm,) = raised(watch(), [(step, "free", blind) for step in range(1, 6)])
    assert alarm.name == "video_blind"
    assert "80.0 %" in alarm.saw and "90.0 %" in alarm.saw


def test_a_gap_far_above_those_before_raises_an_alarm_at_once():
    gaps = [0.008, 0.012, 0.01, 0.011, 0.06, 0.009]
    (alarm,) = raised(watch(), rows(names.PARITY_GAP_MEAN, gaps))
    assert (alarm.name, alarm.last_step) == ("gap_grows", 5)
    assert alarm.saw == "the mean log-prob gap is 6.0e-02 nats, and was 1.1e-02 (median); the limit is 5 times that"


def test_a_gap_of_rounding_is_no_alarm_and_neither_is_one_before_the_window_is_full():
    assert raised(watch(), rows(names.PARITY_GAP_MEAN, [1e-7] * 5 + [9e-5] * 2)) == []
    assert raised(watch(), rows(names.PARITY_GAP_MEAN, [0.001, 0.001, 0.07])) == []
    assert raised(watch(max_gap_factor=8.0), rows(names.PARITY_GAP_MEAN, [0.01] * 5 + [0.079])) == []


def test_a_window_of_no_steps_turns_all_alarms_off():
    alarms = watch(window_steps=0)
    assert raised(alarms, rows(names.REWARD_STD, [0.0] * 50)) == []
    assert raised(alarms, rows(names.LEARNER_SKIPPED, [1.0] * 3, first_step=51)) == []
    assert alarms.states() == {}


def test_limits_come_from_the_configuration():
    values = [0.1] * WINDOW
    assert raised(watch(max_truncated_share=0.2), rows(names.ROLLOUT_TRUNCATED_SHARE, values)) == []
    assert len(raised(watch(max_truncated_share=0.05), rows(names.ROLLOUT_TRUNCATED_SHARE, values))) == 1


def test_replaying_the_rows_of_a_run_gives_the_watch_of_a_resumed_one():
    values = [0.5] * 6 + [0.0] * 3 + [0.9] * 3
    run = rows(names.ROLLOUT_TRUNCATED_SHARE, values) + rows(names.REWARD_MATCHING, [0.1] * 8, "free", first_step=13)
    live, lines = watch(), []
    for step, phase, metrics in run[:15]:
        live.observe(step, phase, metrics)
        lines.append(json.dumps({"step": step, "phase": phase, "time_s": 1.0, **metrics, **live.states()}))
    resumed = watch()
    for row in map(json.loads, lines):
        resumed.observe(row["step"], row["phase"], row)
        assert resumed.states() == {metric: row[metric] for metric in names.ALARMS}
    assert spans(raised(resumed, run[15:])) == spans(raised(live, run[15:])) == [("matching_falls", 13, 16)]


def test_replaying_the_rows_tells_whether_skipped_updates_are_news():
    run = rows(names.LEARNER_SKIPPED, [0.0, 1.0, 1.0, 0.0, 1.0])
    for last in range(1, 5):
        resumed = watch()
        raised(resumed, run[:last])
        expected = {1: [2, 5], 2: [5], 3: [5], 4: [5]}[last]
        assert [alarm.last_step for alarm in raised(resumed, run[last:])] == expected


def test_an_alarm_survives_json_and_pickling():
    alarm = Alarm("truncated", 3, 3, "saw", "check")
    assert Alarm(**json.loads(json.dumps(alarm.as_dict()))) == alarm
    assert pickle.loads(pickle.dumps(alarm)) == alarm
    assert alarm.steps == "step 3"


def test_every_alarm_has_a_state_and_every_text_is_one_ascii_line():
    assert set(watch().states()) == set(names.ALARMS)
    assert alarm_name(names.ALARM_VIDEO_BLIND) == "video_blind"
    bad = {
        names.REWARD_TIMESTAMP: 0.0,
        names.REWARD_STD: 0.0,
        names.REWARD_FORMAT: 0.1,
        names.REWARD_MATCHING: 0.1,
        names.ROLLOUT_TRUNCATED_SHARE: 1.0,
        names.ANSWER_SINGLE_SEGMENT_SHARE: 1.0,
        names.ANSWER_SAME_SHARE: 1.0,
        names.LEARNER_SKIPPED: 1.0,
        names.PARITY_GAP_MEAN: 0.01,
    }
    steps = [(step, "free" if step <= 4 else "timestamps", HEALTHY if step <= 4 else bad) for step in range(1, 9)]
    steps[-1] = (8, "timestamps", bad | {names.PARITY_GAP_MEAN: 0.07})
    alarms = raised(watch(), steps)
    assert {f"alarm/{alarm.name}" for alarm in alarms} == set(names.ALARMS)
    texts = [text for alarm in alarms for text in (alarm.saw, alarm.check)]
    assert all(text.isascii() and "\n" not in text for text in texts)
