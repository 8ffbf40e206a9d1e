"""What the display draws, as pure functions of the steps so far: the live panel and the closing table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from museg_ray.config.schema import FURTHER_REWARDS, PhaseConfig
from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm, alarm_name
from museg_ray.shown_text import one_line
from museg_ray.terminal.console import make_table

PANEL_WIDTH = 88
SPARK_WIDTH = 32
TIME_BAR_WIDTH = 40
RECENT_STEPS = 10
"""Steps that a present speed or time is the mean of."""

SPARKS = "▁▂▃▄▅▆▇"  # not the full block: rows stand one below the other and would run together
REWARD_ROWS = (
    ("reward", names.REWARD_TOTAL),
    ("  matching", names.REWARD_MATCHING),
    ("    global", names.REWARD_GLOBAL),
    ("    local", names.REWARD_LOCAL),
    ("  timestamp", names.REWARD_TIMESTAMP),
    ("  format", names.REWARD_FORMAT),
    *((f"  {name}", f"reward/{name}") for name in FURTHER_REWARDS),
    ("spread in group", names.REWARD_STD),
)
TIME_STYLES = {"clips": "magenta", "rollout": "cyan", "reward": "yellow", "learner": "blue", "sync": "green"}


Row = Mapping[str, Any]
"""A finished step, as metrics.jsonl has it: `step`, `phase` and its metrics."""


@dataclass(slots=True)
class Progress:
    """The steps so far of a run."""

    run_name: str
    phases: Sequence[PhaseConfig]
    total_steps: int
    rows: list[Row] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The last one that has finished."""
        return int(self.rows[-1]["step"])

    def latest(self, metric: str) -> float | None:
        """Value of the last step; None where it was not recorded."""
        return self.rows[-1].get(metric)

    def history(self, metric: str) -> list[float | None]:
        """One value a step; None where it was not recorded or would be misread.

        The total and its spread start anew with each phase: under other weights they are other quantities.
        """
        depends_on_phase = metric in (names.REWARD_TOTAL, names.REWARD_STD)
        phase = self.rows[-1]["phase"]
        return [None if depends_on_phase and row["phase"] != phase else row.get(metric) for row in self.rows]

    def recent(self, metric: str) -> float:
        """Mean over the last `RECENT_STEPS` steps; 0 where it was not recorded."""
        return _mean([row.get(metric) for row in self.rows[-RECENT_STEPS:]]) or 0.0

    @property
    def alarms(self) -> list[str]:
        """Names of the alarms that are raised after the last step."""
        return [alarm_name(metric) for metric in names.ALARMS if self.latest(metric)]

    @property
    def is_complete(self) -> bool:
        """True once the last step is in."""
        return bool(self.rows) and self.step >= self.total_steps

    @property
    def remaining_s(self) -> float:
        """Seconds to the last step at the recent speed."""
        return self.recent(names.TIME_STEP_S) * (self.total_steps - self.step)


def clock(seconds: float) -> str:
    """`75` -> `1:15`, `4000` -> `1:06:40`."""
    minutes, second = divmod(int(max(seconds, 0.0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sparkline(values: Sequence[float | None], width: int) -> str:
    """At most `width` bars from the lowest to the highest value, blanks for None; more values are averaged in bins."""
    count = min(width, len(values))
    edges = [len(values) * index // count for index in range(count + 1)] if values else []
    bins = [_mean(values[start:end]) for start, end in pairwise(edges)]
    known = [value for value in bins if value is not None]
    low, spread = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return "".join(_spark(value, low, spread) for value in bins)


def _spark(value: float | None, low: float, spread: float) -> str:
    if value is None:
        return " "
    # A constant has no lowest and highest: draw it in the middle.
    level = (value - low) / spread if spread > 1e-9 else 0.5
    return SPARKS[round(level * (len(SPARKS) - 1))]


def training_panel(progress: Progress, elapsed_s: float, remaining_s: float) -> Panel:
    """The panel of a running training; needs at least one finished step."""
    body = Group(
        _phase_line(progress),
        _progress_line(progress, elapsed_s, remaining_s),
        *_alarm_lines(progress),
        Text(),
        _reward_table(progress),
        Text(),
        _time_lines(progress),
        Text(),
        _figures_line(progress),
    )
    title = Text.assemble("museg_ray ", ("· ", "dim"), (one_line(progress.run_name), "bold"))
    return Panel(
        body, title=title, title_align="left", box=box.ROUNDED, border_style="dim", width=PANEL_WIDTH, padding=(1, 2)
    )


def _labelled(label: str, *content: RenderableType) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=15, style="dim")
    row.add_row(label, *content)
    return row


def _phase_line(progress: Progress) -> Table:
    text, first, step = Text(), 1, progress.step
    for phase in progress.phases:
        last = first + phase.steps - 1
        mark, style = ("✓", "dim") if step > last else ("●", "bold cyan") if step >= first else ("○", "dim")
        text.append(f"{mark} {one_line(phase.name)}", style).append(f" {first} to {last}    ", "dim")
        first = last + 1
    return _labelled("phase", text)


def _progress_line(progress: Progress, elapsed_s: float, remaining_s: float) -> Table:
    step, total = progress.step, progress.total_steps
    bar = ProgressBar(total=total, completed=step, width=SPARK_WIDTH, complete_style="cyan", finished_style="green")
    left = f"{clock(remaining_s)} left" if step < total else "done"
    count = Text.assemble((f"{step}", "bold"), (f" of {total}", "dim"))
    return _labelled("step", bar, count, Text(f"{clock(elapsed_s)} gone, {left}", "dim"))


def _alarm_lines(progress: Progress) -> list[RenderableType]:
    """The alarms that are raised at present; no line when there are none."""
    return [_labelled("alarms", Text("  ".join(progress.alarms), "bold yellow"))] if progress.alarms else []


def alarm_notice(alarm: Alarm) -> Table:
    """An alarm as it is printed above the panel: what was seen, and under it what to check."""
    notice = Table.grid(padding=(0, 1, 0, 0))
    notice.add_row(
        Text("▲", "bold yellow"), Text.assemble((alarm.name, "bold"), f", {alarm.steps}: {alarm.saw}", style="yellow")
    )
    notice.add_row("", Text(f"check: {alarm.check}", "yellow"))
    return notice


def _reward_table(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=15)
    table.add_column(justify="right", width=7)
    table.add_column(width=SPARK_WIDTH)
    table.add_column(style="dim")
    for label, metric in REWARD_ROWS:
        now = progress.latest(metric)
        if now is None:
            continue
        history = progress.history(metric)
        known = [value for value in history if value is not None]
        strong = metric == names.REWARD_TOTAL
        table.add_row(
            Text(label, "bold" if strong else "dim"),
            Text(f"{now:.3f}", "bold" if strong else ""),
            Text(sparkline(history, SPARK_WIDTH), "cyan" if strong else "blue"),
            f"{min(known):.2f} to {max(known):.2f}",
        )
    return table


def _time_lines(progress: Progress) -> Group:
    step_s = progress.recent(names.TIME_STEP_S)
    parts = [(label, progress.recent(names.TIME_PARTS[label]), style) for label, style in TIME_STYLES.items()]
    parts.append(("rest", max(step_s - sum(seconds for _, seconds, _ in parts), 0.0), "dim"))
    whole_s = sum(seconds for _, seconds, _ in parts) or 1.0
    bar, gone_s, drawn = Text(), 0.0, 0
    for _, seconds, style in parts:
        gone_s += seconds
        end = round(gone_s / whole_s * TIME_BAR_WIDTH)
        bar.append("█" * (end - drawn), style)
        drawn = end
    legend = [(Text.assemble(("■ ", style), (label, "dim")), f"  {seconds:.2f}") for label, seconds, style in parts]
    return Group(_labelled("time a step", bar, Text(f"{step_s:.2f} s", "bold")), _labelled("", _figures(legend)))


def _figures_line(progress: Progress) -> Table:
    figures = (
        ("rollouts/s", "{:.1f}", names.ROLLOUT_RESPONSES_PER_S),
        ("tokens each", "{:.0f}", names.ROLLOUT_COMPLETION_TOKENS),
        ("log-prob gap", "{:.1e}", names.PARITY_GAP_MEAN),
        ("weights", "v{:.0f}", names.WEIGHTS_VERSION),
    )
    latest = [(Text(label, "dim"), form, progress.latest(metric)) for label, form, metric in figures]
    return _labelled("now", _figures([(label, form.format(now)) for label, form, now in latest if now is not None]))


def _figures(figures: Sequence[tuple[Text, str]]) -> Table:
    """Labels above their values, side by side."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(*(label for label, _ in figures))
    grid.add_row(*(value for _, value in figures))
    return grid


def closing_table(summary: Mapping[str, Any]) -> Table:
    """Held-out results: before, after, change, the best video-blind answer, and swapped videos.

    Args:
        summary: the run's summary; reads `before`, `after`, `blind` and `swapped`, each metric -> value.
    """
    table = make_table(
        [""],
        title="Held-out videos, greedy answers",
        caption="blind    the fixed answer that scores best on the train videos\n"
        "swapped  every question asked of another video",
        caption_style="dim",
        caption_justify="left",
    )
    for heading in ("before", "after", "change", "blind", "swapped"):
        table.add_column(heading, justify="right", min_width=7)
    for metric, label, _ in names.SCORES:
        before, after = summary["before"].get(metric), summary["after"].get(metric)
        blind, swapped = summary["blind"].get(metric), summary["swapped"].get(metric)
        after_text = Text(_number(after), "bold")
        table.add_row(label, _number(before), after_text, _change(before, after), _number(blind), _number(swapped))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _change(before: float | None, after: float | None) -> Text:
    if before is None or after is None:
        return Text("-")
    change = after - before
    return Text(f"{change:+.3f}", "green" if change > 0.0005 else "red" if change < -0.0005 else "dim")
