"""Shows a run to the person who started it: a live panel on a terminal, plain ASCII lines everywhere else."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from museg_ray.config.schema import PhaseConfig
from museg_ray.metrics import names
from museg_ray.metrics.alarms import Alarm
from museg_ray.shown_text import one_line
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.panel import SPARK_WIDTH, Progress, Row, alarm_notice, clock, closing_table, training_panel

PLAIN_COLUMNS = (
    # heading, width, form, metric
    ("reward", 6, "{:.3f}", names.REWARD_TOTAL),
    ("match", 6, "{:.3f}", names.REWARD_MATCHING),
    ("stamp", 6, "{:.3f}", names.REWARD_TIMESTAMP),
    ("format", 6, "{:.3f}", names.REWARD_FORMAT),
    ("spread", 6, "{:.3f}", names.REWARD_STD),
    ("roll/s", 6, "{:.1f}", names.ROLLOUT_RESPONSES_PER_S),
    ("gap", 7, "{:.1e}", names.PARITY_GAP_MEAN),
    ("ver", 4, "{:.0f}", names.WEIGHTS_VERSION),
    ("step_s", 7, "{:.2f}", names.TIME_STEP_S),
    ("roll_s", 7, "{:.2f}", names.TIME_ROLLOUT_S),
    ("learn_s", 7, "{:.2f}", names.TIME_LEARNER_S),
    ("sync_s", 6, "{:.2f}", names.TIME_SYNC_S),
)

_PLAIN_HEADING = "  ".join([f"{'step':>9}", *(f"{heading:>{width}}" for heading, width, _, _ in PLAIN_COLUMNS)])

StageProgress = Callable[[int, int], None]
"""Called with (done, total) by a stage that can count."""


@dataclass(slots=True)
class _Stage:
    text: str
    start_s: float
    """On the monotonic clock."""
    done: int = 0
    total: int = 0
    """0: the stage does not count."""

    def advance(self, done: int, total: int) -> None:
        self.done, self.total = done, total


class Display:
    """One run on one console; a context manager."""

    def __init__(
        self, run_name: str, phases: Sequence[PhaseConfig], total_steps: int, console: SafeConsole | None = None
    ) -> None:
        """
        Args:
            run_name: shown as the title.
            phases: in order; their names and lengths are shown.
            total_steps: optimiser steps of all phases.
            console: standard output when None.
        """
        self._console = console or SafeConsole()
        self._is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._spinner = Spinner("dots", style="cyan")
        self._progress = Progress(run_name, phases, total_steps)
        self._stages: list[_Stage] = []  # under way, innermost last
        self._waiting = _first_step()
        self._training_start_s = self._last_step_s = 0.0  # on the monotonic clock; 0: not yet
        self._panel_is_printed = False
        self._headed_phase: str | None = None  # whose plain heading stands above the last line
        # Last, since Live calls _render at once. It leaves sys.stdout alone: what libraries print stays off the panel.
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()
            self._panel_is_printed = True  # the last live panel stays on the screen

    @contextmanager
    def stage(self, text: str) -> Iterator[StageProgress]:
        """Announce a stage such as `evaluation before`, and at its end the seconds it took.

        Yields a function that a stage may call with (done, total); a terminal then shows a progress bar.
        """
        if self._progress.is_complete:
            self._leave_panel()
        stage = _Stage(one_line(text), time.monotonic())
        if not self._is_live:
            self.line(f"...    {stage.text}")
        self._stages.append(stage)
        succeeded = False
        try:
            yield stage.advance
            succeeded = True
        finally:
            self._stages.remove(stage)
            self._waiting = _first_step()
            self._announce_end(stage, succeeded)

    def step(self, step: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Show a finished optimiser step.

        Args:
            step: from 1.
            phase: name of its phase.
            metrics: what the recorder got for it.
        """
        self._last_step_s = time.monotonic()
        if not self._training_start_s:
            self._training_start_s = self._last_step_s - metrics.get(names.TIME_STEP_S, 0.0)
        self._progress.rows.append({"step": step, "phase": phase, **metrics})
        if not self._is_live:
            if phase != self._headed_phase:
                self.line(f"phase {phase}")
                self.line(_PLAIN_HEADING)
                self._headed_phase = phase
            self.line(_plain_row(self._progress))

    def go_back(self, rows: Sequence[Row]) -> None:
        """These steps were made before the run was resumed, or stay of training that was taken back, without a line of
        their own. The time that has gone is gone."""
        self._progress.rows = list(rows)
        if rows:
            self._last_step_s = time.monotonic()
            self._training_start_s = self._training_start_s or self._last_step_s

    def event(self, text: str) -> None:
        """Show what happened to a part of the run: who was lost, who joined, what was scaled."""
        self._tell(Text.assemble(("● ", "cyan"), (one_line(text), "dim")), f"event  {text}")

    def alarm(self, alarm: Alarm) -> None:
        """Show an alarm that the last step raised: above the panel, which names it for as long as it holds."""
        seen = f"alarm  {alarm.name}, {alarm.steps}: {alarm.saw}"
        self._tell(alarm_notice(alarm), seen, f"       check: {alarm.check}")

    def warn(self, text: str) -> None:
        """Show one line that should not be missed, above the panel."""
        self._tell(Text.assemble(("! ", "bold yellow"), one_line(text)), f"warn   {text}")

    def _tell(self, above_panel: RenderableType, *plain_lines: str) -> None:
        if self._is_live:
            self._console.print(above_panel)
            return
        for line in plain_lines:
            self.line(line)

    def closing(self, summary: Mapping[str, Any]) -> None:
        """Print the table before / after / change / blind / swapped from the run's summary."""
        self._leave_panel()
        self._console.print()
        self._console.print(closing_table(summary))
        asked, scored = summary["heldout"]["asked"], summary["heldout"]["scored"]
        if scored < asked:
            self._console.print(f"Scored on {scored} of {asked} questions: the videos of the others cannot be read.")

    def line(self, text: str) -> None:
        """Print one line as it is."""
        self._console.print_line(text)

    def _render(self) -> Group:
        """The live area: the panel from the first step to the last, and the stage under way with its seconds."""
        now_s = time.monotonic()
        shown: list[RenderableType] = []
        if self._progress.rows and not self._panel_is_printed:
            shown.append(self._panel(now_s))
        if self._stages:
            shown.append(self._stage_line(self._stages[-1], now_s))
        elif not self._progress.rows:
            shown.append(self._stage_line(self._waiting, now_s))
        return Group(*shown)

    def _stage_line(self, stage: _Stage, now_s: float) -> Table:
        self._spinner.update(text=Text.assemble(stage.text, (f"  {clock(now_s - stage.start_s)}", "dim")))
        line = Table.grid(padding=(0, 2, 0, 0))
        if stage.total:
            bar = ProgressBar(total=stage.total, completed=stage.done, width=SPARK_WIDTH, complete_style="cyan")
            line.add_row(self._spinner, bar, Text(f"{stage.done} of {stage.total}", "dim"))
        else:
            line.add_row(self._spinner)
        return line

    def _panel(self, now_s: float) -> RenderableType:
        remaining_s = self._progress.remaining_s - (now_s - self._last_step_s)
        return training_panel(self._progress, now_s - self._training_start_s, remaining_s)

    def _leave_panel(self) -> None:
        """Print the last panel above what follows, so that later stages stand below it in the order of time."""
        if self._is_live and self._progress.rows and not self._panel_is_printed:
            self._panel_is_printed = True
            self._console.print(self._panel(self._last_step_s))

    def _announce_end(self, stage: _Stage, succeeded: bool) -> None:
        seconds = time.monotonic() - stage.start_s
        mark = ("✓ ", "green") if succeeded else ("✗ ", "bold red")
        self._tell(
            Text.assemble(mark, stage.text, (f"  {seconds:.1f} s", "dim")),
            f"{'ok' if succeeded else 'FAILED':6} {stage.text} ({seconds:.1f} s)",
        )


def _first_step() -> _Stage:
    """What a terminal shows where no stage is under way and no step has finished."""
    return _Stage("waiting for the first step", time.monotonic())


def _plain_row(progress: Progress) -> str:
    cells = []
    for _, width, form, metric in PLAIN_COLUMNS:
        now = progress.latest(metric)
        cells.append(f"{'-' if now is None else form.format(now):>{width}}")
    return f"{progress.step:>4}/{progress.total_steps:<4}  {'  '.join(cells)}"
