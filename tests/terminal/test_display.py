import io
import re
from collections.abc import Mapping

import pytest

from museg_ray.config.schema import PhaseConfig
from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.display import Display
from museg_ray.terminal.panel import Progress, Row, clock, closing_table, sparkline, training_panel
from tests.hostile import ESCAPED, HOSTILE, SURROGATE, assert_harmless

PHASES = [PhaseConfig("timestamps", 2), PhaseConfig("free", 2)]
METRICS = (
    {metric: 0.5 for metric in names.METRICS}
    | {names.WEIGHTS_VERSION: 3.0, names.TIME_STEP_S: 4.0}
    | dict.fromkeys(names.ALARMS, 0.0)
)
ALARM = Alarm("single_segment", 41, 60, "95.6 % name one segment, above 90 %", "is local matching on? " * 6)
SUMMARY = {
    "before": {"miou": 0.48, "format_rate": 0.9},
    "after": {"miou": 0.631, "format_rate": 0.85},
    "blind": {"miou": 0.4},
    "swapped": {"miou": 0.28, "format_rate": 0.9},
    "heldout": {"asked": 160, "scored": 160},
}


def plain_console() -> SafeConsole:
    return SafeConsole(file=io.StringIO(), width=80)


def terminal_console() -> SafeConsole:
    return SafeConsole(
        file=io.StringIO(), width=100, force_terminal=True, color_system=None, _environ={"TERM": "xterm"}
    )


def written(console: SafeConsole) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rendered(renderable: object, width: int = 80) -> str:
    console = SafeConsole(file=io.StringIO(), width=width)
    console.print(renderable)
    return written(console)


def step_row(step: int, phase: str, metrics: Mapping[str, float]) -> Row:
    return {"step": step, "phase": phase, **metrics}


def progress_of(*rows: Row) -> Progress:
    return Progress("run-1", PHASES, 4, list(rows))


def test_a_pipe_gets_one_ascii_line_a_step_within_120_characters():
    console = plain_console()
    with Display("run-1", PHASES, 4, console) as display:
        for step in (1, 2, 3):
            display.step(step, "timestamps" if step < 3 else "free", METRICS)
    lines = written(console).splitlines()
    assert [line.split()[0] for line in lines] == ["phase", "step", "1/4", "2/4", "phase", "step", "3/4"]
    assert written(console).isascii()
    assert max(map(len, lines)) <= 120


def test_a_run_that_goes_on_prints_no_line_for_earlier_steps_but_its_phases_heading():
    console = plain_console()
    with Display("run-1", PHASES, 4, console) as display:
        display.go_back([step_row(step, "timestamps", METRICS) for step in (1, 2)])
        display.step(3, "timestamps", METRICS)
    assert [line.split()[0] for line in written(console).splitlines()] == ["phase", "step", "3/4"]


def test_training_that_was_taken_back_shows_the_steps_that_stay_and_all_the_time_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
):
    now_s, console = [1000.0], terminal_console()
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    with Display("run-1", PHASES, 4, console) as display:
        for step, matching in ((1, 0.1), (2, 0.9)):
            display.step(step, "timestamps", METRICS | {names.REWARD_MATCHING: matching})
            now_s[0] += 60.0
        display.go_back([step_row(1, "timestamps", METRICS | {names.REWARD_MATCHING: 0.1})])
        display.step(2, "timestamps", METRICS | {names.REWARD_MATCHING: 0.2})
    last = written(console).rpartition("matching")[2]
    assert "0.10 to 0.20" in last, "0.9 was never"
    assert "2:04 gone" in written(console).rpartition("2 of 4")[2], "a step of 4 s, and two minutes since"


def test_columns_of_a_pipe_stand_under_their_headings():
    console = plain_console()
    with Display("run-1", PHASES, 4, console) as display:
        display.step(1, "timestamps", METRICS | {names.REWARD_TOTAL: 1.234})
    _, heading, row = written(console).splitlines()
    end = heading.index("reward") + len("reward")
    assert row[:end].endswith("1.234")
    assert len(heading) == len(row)


def test_a_metric_that_was_not_recorded_is_a_dash():
    console = plain_console()
    with Display("run-1", PHASES, 4, console) as display:
        display.step(1, "timestamps", {names.REWARD_TOTAL: 1.0})
    assert written(console).splitlines()[-1].split() == ["1/4", "1.000"] + ["-"] * 11


def test_a_stage_is_announced_when_it_starts_and_when_it_ends():
    console = plain_console()
    with Display("run-1", PHASES, 4, console) as display, display.stage("rendering"):
        assert written(console) == "...    rendering\n"
    assert written(console).splitlines()[1].startswith("ok     rendering (")


def test_a_stage_that_fails_says_so_and_passes_the_error_on():
    console = plain_console()
    display = Display("run-1", PHASES, 4, console)
    with pytest.raises(ValueError, match="no disk"), display, display.stage("rendering"):
        raise ValueError("no disk")
    assert written(console).splitlines()[1].startswith("FAILED rendering (")


def test_a_terminal_shows_stages_the_panel_once_and_the_table_below_it():
    console = terminal_console()
    with Display("run-1", PHASES, 4, console) as display:
        with display.stage("rendering") as progress:
            progress(3, 4)
        for step in (1, 2, 3, 4):
            display.step(step, "timestamps" if step < 3 else "free", METRICS)
        with display.stage("evaluation after"):
            pass
    display.closing(SUMMARY)
    text = written(console)
    stages = [text.index(mark) for mark in ("✓ rendering", "4 of 4", "✓ evaluation after", "Held-out videos")]
    assert stages == sorted(stages)


def test_a_pipe_gets_an_alarm_as_two_ascii_lines():
    console = plain_console()
    with Display("run-1", PHASES, 4, console) as display:
        display.alarm(ALARM)
    assert written(console).splitlines() == [
        "alarm  single_segment, steps 41 to 60: 95.6 % name one segment, above 90 %",
        f"       check: {ALARM.check}",
    ]
    assert written(console).isascii()


def test_a_pipe_gets_a_warning_as_one_line():
    console = plain_console()
    with Display("run", PHASES, 4, console) as display:
        display.warn("step 3: responses without a score: 2; see [b]quarantine.jsonl")
    assert "warn   step 3: responses without a score: 2; see [b]quarantine.jsonl\n" in written(console)


def test_a_terminal_gets_an_alarm_above_the_panel():
    console = terminal_console()
    with Display("run-1", PHASES, 4, console) as display:
        display.step(1, "timestamps", METRICS)
        display.alarm(ALARM)
    text = written(console)
    seen, check = text.index("single_segment, steps 41 to 60: 95.6 %"), text.index("check: is local matching on?")
    assert seen < check < text.rindex("run-1")


def test_the_panel_names_the_alarms_that_hold_and_has_no_row_without_one():
    def panel_text(**raised: float) -> str:
        metrics = METRICS | {f"alarm/{name}": state for name, state in raised.items()}
        return rendered(training_panel(progress_of(step_row(1, "timestamps", metrics)), 75.0, 4000.0))

    assert "alarms" not in panel_text()
    (row,) = [line for line in panel_text(truncated=1.0, video_blind=1.0).splitlines() if "alarms" in line]
    assert row.split()[1:-1] == ["alarms", "truncated", "video_blind"]
    everything = panel_text(**{metric.removeprefix("alarm/"): 1.0 for metric in names.ALARMS})
    assert all(metric.removeprefix("alarm/") in everything for metric in names.ALARMS)


def test_the_panel_shows_a_further_reward_only_where_it_was_recorded():
    with_it = rendered(training_panel(progress_of(step_row(1, "free", {names.REWARD_TIOU: 0.25})), 75.0, 4000.0))
    without = rendered(training_panel(progress_of(step_row(1, "free", {names.REWARD_TOTAL: 0.25})), 75.0, 4000.0))
    assert "tiou" in with_it
    assert "tiou" not in without


def test_the_panel_fits_80_columns_without_breaking_a_line():
    panel = training_panel(progress_of(*(step_row(step, "timestamps", METRICS) for step in (1, 2))), 75.0, 4000.0)
    narrow, wide = rendered(panel, 80).splitlines(), rendered(panel, 200).splitlines()
    assert max(map(len, narrow)) <= 80
    assert len(narrow) == len(wide)


def test_the_panel_shows_phase_step_times_and_weight_version():
    text = rendered(training_panel(progress_of(step_row(1, "timestamps", METRICS)), 75.0, 4000.0))
    for shown in ("● timestamps 1 to 2", "○ free 3 to 4", "1 of 4", "1:15 gone", "1:06:40 left", "4.00 s", "v3"):
        assert shown in text


def test_the_total_starts_anew_with_a_phase_since_its_weights_differ():
    rows = [step_row(2, "timestamps", {names.REWARD_TOTAL: 2.4}), step_row(3, "free", {names.REWARD_TOTAL: 1.6})]
    assert progress_of(*rows).history(names.REWARD_TOTAL) == [None, 1.6]


def test_the_parts_keep_their_history_over_phases():
    rows = [step_row(2, "timestamps", {names.REWARD_MATCHING: 0.4}), step_row(3, "free", {names.REWARD_MATCHING: 0.6})]
    assert progress_of(*rows).history(names.REWARD_MATCHING) == [0.4, 0.6]


def test_remaining_time_follows_the_last_steps():
    rows = [step_row(step, "timestamps", {names.TIME_STEP_S: 4.0}) for step in (1, 2)]
    assert progress_of(*rows).remaining_s == 8.0


def test_a_sparkline_spans_lowest_to_highest_and_leaves_gaps_blank():
    assert sparkline([0.0, 0.5, 1.0], width=8) == "▁▄▇"
    assert sparkline([None, 0.0, 1.0], width=8) == " ▁▇"
    assert sparkline([0.3, 0.3], width=8) == "▄▄"
    assert sparkline([], width=8) == ""


def test_a_long_history_is_averaged_into_the_width():
    assert sparkline([0.0, 0.0, 1.0, 1.0], width=2) == "▁▇"
    assert len(sparkline([float(value) for value in range(1000)], width=32)) == 32


def test_the_closing_table_shows_change_blind_and_swapped():
    lines = rendered(closing_table(SUMMARY)).splitlines()
    (miou,) = [line.split() for line in lines if "mIoU" in line]
    (form,) = [line.split() for line in lines if "right format" in line]
    assert miou == ["mIoU", "0.480", "0.631", "+0.151", "0.400", "0.280"]
    assert form == ["right", "format", "0.900", "0.850", "-0.050", "-", "0.900"]


def test_clock_counts_hours_only_when_there_are_some():
    assert [clock(seconds) for seconds in (0.0, 75.4, 4000.0, -3.0)] == ["0:00", "1:15", "1:06:40", "0:00"]


def test_the_closing_table_says_when_videos_could_not_be_read() -> None:
    console = plain_console()
    with Display("run", PHASES, 4, console) as display:
        display.closing(SUMMARY)
        assert "cannot be read" not in written(console)
        display.closing(SUMMARY | {"heldout": {"asked": 160, "scored": 157}})
    assert "Scored on 157 of 160 questions: the videos of the others cannot be read." in written(console)


def run_with_hostile_text(console: SafeConsole) -> str:
    phase = PhaseConfig(HOSTILE, 2)
    with Display(HOSTILE, [phase], 2, console) as display:
        with display.stage(f"a\n{HOSTILE}"):
            display.event(HOSTILE + SURROGATE)
        display.warn(f"a\n{HOSTILE}")
        display.step(1, HOSTILE, METRICS)
        display.alarm(Alarm(HOSTILE, 1, 2, HOSTILE, HOSTILE))
        display.line(HOSTILE)
    return written(console)


def test_hostile_text_is_shown_in_a_plain_log_one_line_each() -> None:
    text = run_with_hostile_text(plain_console())
    assert_harmless(text)
    assert [line.split()[0] for line in text.splitlines()] == [
        *("...", "event", "ok", "warn", "phase", "step", "1/2", "alarm", "check:"),
        ESCAPED.split()[0],
    ]


def test_a_terminal_gets_no_command_but_those_of_the_display_itself() -> None:
    text = run_with_hostile_text(
        SafeConsole(file=io.StringIO(), width=400, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    )
    assert "\x1b[31m" not in text
    own_commands = re.compile(r"\x1b\[\??\d*[A-Za-z]|\r")  # of the cursor; there are no colours here
    assert_harmless(own_commands.sub("", text))
