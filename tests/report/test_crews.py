"""Who was there when, from a run's events."""

from collections.abc import Callable
from pathlib import Path

import pytest

from museg_ray.append_log import AppendLog
from museg_ray.report.crews import stays_of
from museg_ray.report.page import write_report

EVENTS = [
    {"unix_s": 0.0, "step": 0, "kind": "start", "text": "a driver starts"},
    {"unix_s": 0.0, "step": 0, "kind": "join", "text": "rollout-0 serves", "role": "rollout", "member": "rollout-0"},
    {"unix_s": 60.0, "step": 1, "kind": "join", "text": "rollout-1 serves", "role": "rollout", "member": "rollout-1"},
    {
        "unix_s": 120.0,
        "step": 2,
        "kind": "loss",
        "text": "<b>rollout-0</b> died",
        "role": "rollout",
        "member": "rollout-0",
    },
    {"unix_s": 150.0, "step": 2, "kind": "join", "text": "reward-0 serves", "role": "reward", "member": "reward-0"},
    {
        "unix_s": 180.0,
        "step": 3,
        "kind": "leave",
        "text": "rollout-1 has left",
        "role": "rollout",
        "member": "rollout-1",
    },
    {"unix_s": 240.0, "step": 4, "kind": "checkpoint", "text": "checkpoint of step 4"},
]


def test_every_stay_has_its_time_and_its_end() -> None:
    stays = [(stay.member, stay.from_min, stay.to_min, stay.was_lost) for stay in stays_of(EVENTS)]
    assert stays == [("rollout-0", 0.0, 2.0, True), ("rollout-1", 1.0, 3.0, False), ("reward-0", 2.5, 4.0, False)]
    assert stays_of([]) == []


def test_who_was_there_when_a_driver_died_went_with_it() -> None:
    again = {"unix_s": 200.0, "step": 2, "kind": "start", "text": "a driver starts"}
    stays = {stay.member: (stay.to_min, stay.was_lost) for stay in stays_of([*EVENTS[:5], again])}
    assert stays["reward-0"] == (pytest.approx(200 / 60), True)


def test_the_report_draws_them_and_lists_what_went_wrong(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    assert "Who was there when" not in write_report(folder).read_text(), "a run without events has no picture of them"
    AppendLog(folder / "events.jsonl").append(EVENTS)
    page = write_report(folder).read_text()
    assert page.count('class="bar rollout') == 2 and page.count('class="bar reward"') == 1
    assert 'class="bar rollout lost" style="margin-left: 0.00%; width: 50.00%"' in page
    assert "3 events: losses, restarts, scalings" in page
    assert "&lt;b&gt;rollout-0&lt;/b&gt; died" in page and "checkpoint of step 4" not in page
