import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from museg_ray.metrics.alarms import Alarm
from museg_ray.report.curves import draw_curves
from museg_ray.report.run_folder import read_run


@pytest.mark.parametrize("stop_after", [None, 5, 1])
def test_curves_are_drawn_for_any_number_of_steps(make_run: Callable[..., Path], stop_after: int | None):
    path = draw_curves(read_run(make_run(stop_after=stop_after)))
    assert path.name == "curves.png"
    with Image.open(path) as picture:
        assert picture.size == (1500, 1440)


def test_an_alarm_is_marked_in_the_picture(make_run: Callable[..., Path]):
    run_dir = make_run()
    without = draw_curves(read_run(run_dir)).read_bytes()
    (run_dir / "alarms.jsonl").write_text(json.dumps(Alarm("truncated", 2, 5, "saw", "check").as_dict()) + "\n")
    assert draw_curves(read_run(run_dir)).read_bytes() != without


def test_a_run_without_a_step_gets_a_picture_that_says_so(make_run: Callable[..., Path]):
    with Image.open(draw_curves(read_run(make_run(stop_after=0)))) as picture:
        assert picture.height < 300


def test_a_gap_of_exactly_zero_can_be_drawn_on_the_log_axis(make_run: Callable[..., Path]):
    run_dir = make_run(stop_after=0)
    row = '{"step": 1, "phase": "free", "time_s": 1.0, "parity/gap_mean": 0.0, "parity/gap_max": 0.0}\n'
    (run_dir / "metrics.jsonl").write_text(row)
    assert draw_curves(read_run(run_dir)).is_file()


def test_nothing_half_written_stays_beside_the_picture(make_run: Callable[..., Path]):
    run_dir = make_run(stop_after=2)
    before = {path.name for path in run_dir.iterdir()}
    draw_curves(read_run(run_dir))
    assert {path.name for path in run_dir.iterdir()} - before == {"curves.png"}
