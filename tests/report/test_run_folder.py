import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from museg_ray.errors import CheckpointError, DataError
from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm
from museg_ray.report.run_folder import PhaseSpan, read_run


def test_a_finished_run_misses_nothing(make_run: Callable[..., Path]):
    run = read_run(make_run())
    assert run.missing == []
    assert run.planned_steps == 9
    assert run.phases == [PhaseSpan("timestamps", 1, 4), PhaseSpan("free", 5, 9)]


def test_an_unfinished_run_names_what_it_misses(make_run: Callable[..., Path]):
    run = read_run(make_run(stop_after=3))
    assert run.missing == ["steps (3 of 9 are done)", "the evaluation after training", "the summary"]
    assert run.phases == [PhaseSpan("timestamps", 1, 3)]


def test_a_last_line_that_a_crash_cut_is_left_out(make_run: Callable[..., Path]):
    run_dir = make_run(stop_after=3)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "phase": "timest')
    steps, values = read_run(run_dir).series(names.REWARD_TOTAL)
    assert steps.tolist() == [1, 2, 3]
    assert len(values) == 3


def test_a_damaged_line_is_named_by_file_and_number(make_run: Callable[..., Path]):
    run_dir = make_run()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    lines[1] = "{"
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2"):
        read_run(run_dir)


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"not a run folder.*config\.yaml"):
        read_run(tmp_path)


def test_the_last_written_rollouts_of_a_phase_are_those_of_its_last_step(make_run: Callable[..., Path]):
    run = read_run(make_run())
    assert {row["step"] for row in run.last_rollouts("timestamps")} == {4}
    assert {row["step"] for row in run.last_rollouts("free")} == {9}
    assert run.last_rollouts("no such phase") == []


def test_alarms_are_read_and_a_run_without_one_has_none(make_run: Callable[..., Path]):
    run_dir = make_run(stop_after=3)
    run = read_run(run_dir)
    assert (run.alarms, run.alarm_window_steps) == ([], 20)
    alarm = Alarm("truncated", 1, 3, "25 % are cut", "the limit")
    (run_dir / "alarms.jsonl").write_text(json.dumps(alarm.as_dict()) + "\n")
    assert read_run(run_dir).alarms == [alarm]


def test_a_run_from_before_there_were_alarms_can_be_read(make_run: Callable[..., Path]):
    run_dir = make_run(stop_after=3)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    del config["alarms"]
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run(run_dir).alarm_window_steps == 0
