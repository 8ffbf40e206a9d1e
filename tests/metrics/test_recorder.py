import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm
from museg_ray.metrics.recorder import Recorder


def test_each_step_is_one_json_line_that_is_readable_at_once(tmp_path: Path):
    recorder = Recorder(tmp_path, "test")
    recorder.log(1, "timestamps", {names.REWARD_TOTAL: 1.5})
    recorder.log(2, "free", {names.REWARD_TOTAL: 1.75, names.WEIGHTS_VERSION: 2})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    recorder.close()
    assert [(row["step"], row["phase"], row["reward/total"]) for row in rows] == [
        (1, "timestamps", 1.5),
        (2, "free", 1.75),
    ]
    assert 0.0 <= rows[0]["time_s"] <= rows[1]["time_s"]


def test_tensorboard_gets_every_value(tmp_path: Path):
    recorder = Recorder(tmp_path, "test")
    for step in (1, 2):
        recorder.log(step, "free", {names.REWARD_TOTAL: 0.5 * step, names.PARITY_GAP_MEAN: 1e-7})
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars(names.REWARD_TOTAL)] == [(1, 0.5), (2, 1.0)]
    assert names.PARITY_GAP_MEAN in events.Tags()["scalars"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float):
    recorder = Recorder(tmp_path, "test")
    with pytest.raises(AssertionError, match="learner/kl"):
        recorder.log(7, "free", {names.LEARNER_LOSS: 0.1, names.LEARNER_KL: value})
    recorder.close()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_name_outside_the_table_is_refused(tmp_path: Path):
    recorder = Recorder(tmp_path, "test")
    with pytest.raises(AssertionError, match="reward/totl"):
        recorder.log(1, "free", {"reward/totl": 1.0})
    recorder.close()


def test_each_alarm_is_one_json_line_that_is_readable_at_once(tmp_path: Path):
    alarms = [Alarm("truncated", 1, 20, "25 %", "the limit"), Alarm("video_blind", 5, 24, "60 %", "swapped")]
    recorder = Recorder(tmp_path, "test")
    assert not (tmp_path / "alarms.jsonl").exists()
    for alarm in alarms:
        recorder.alarm(alarm)
    rows = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    recorder.close()
    assert [Alarm(**row) for row in rows] == alarms


@pytest.mark.parametrize("is_resumed", [True, False], ids=["by another process", "in the middle of a run"])
def test_a_run_that_goes_back_drops_later_rows_and_hides_what_tensorboard_had_beyond(tmp_path: Path, is_resumed: bool):
    recorder = Recorder(tmp_path, "test")
    for step in (1, 2):
        recorder.log(step, "free", {names.REWARD_TOTAL: float(step)})
    mark = recorder.metrics.mark()
    recorder.log(3, "free", {names.REWARD_TOTAL: 3.0})
    recorder.flush()
    assert [event.value for event in _totals(tmp_path)] == [1.0, 2.0, 3.0], "flushed before it is closed"
    again = Recorder(tmp_path, "test") if is_resumed else recorder
    again.metrics.rewind(mark)
    assert [row["step"] for row in again.go_back()] == [1, 2]
    again.log(3, "free", {names.REWARD_TOTAL: 30.0})
    again.close()
    assert [event.value for event in _totals(tmp_path)] == [1.0, 2.0, 30.0]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[1]["time_s"] <= rows[2]["time_s"]


def _totals(folder: Path) -> list[ScalarEvent]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events.Scalars(names.REWARD_TOTAL)
