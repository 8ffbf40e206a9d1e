"""All that a run writes down while it trains: metrics, alarms, responses, the ledger, quarantine, events; and shows.

Every book only grows; a checkpoint holds how far each went, and to go back is to drop what came after.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from museg_ray.append_log import AppendLog, not_written
from museg_ray.checkpoints.state import BookMarks, DriverState, Notes, TrainerState
from museg_ray.config.schema import Config
from museg_ray.events import EventKind
from museg_ray.files import sync
from museg_ray.ledger.ledger import Ledger, OpenIssue, Outcome
from museg_ray.ledger.quarantine import Quarantine
from museg_ray.ledger.rollout_log import RolloutLog
from museg_ray.metrics import names
from museg_ray.metrics.alarms import AlarmWatch, alarm_name
from museg_ray.metrics.recorder import Recorder
from museg_ray.runs.events import Events
from museg_ray.runs.rewind import ROLLOUTS_DIR, set_later_aside
from museg_ray.runs.step_result import StepResult
from museg_ray.terminal.display import Display
from museg_ray.types import Group

ALWAYS_SHOWN = (EventKind.LOSS, EventKind.RESTART, EventKind.REWIND, EventKind.REFILL, EventKind.WAIT)
SHOWN_LATER = (EventKind.JOIN, EventKind.SCALE, EventKind.DRAIN, EventKind.LEAVE)
"""Of the start nobody wants to read them."""


class Books:
    """The books of one run; `close` them in any case."""

    def __init__(self, config: Config, run_dir: Path, display: Display, notes: Notes, run_id: str = "") -> None:
        """Open them behind what is in them.

        Args:
            config: of the run.
            run_dir: gets the files.
            display: is told of every step.
            notes: are kept up to date.
            run_id: goes into each checkpoint.

        Raises:
            CheckpointError: a book is damaged.
            ResourceError: one cannot be read or written.
        """
        self._config, self._display, self._notes = config, display, notes
        self.run_dir, self._run_id = run_dir, run_id
        self._best_metric = config.checkpoint.best_metric
        self._values: list[float] = []  # of `best_metric`, since the checkpoint before
        self._watch = AlarmWatch(config.alarms, config.train.phases)
        self._recorder = Recorder(run_dir, run_dir.name)
        self._rollouts = RolloutLog(run_dir / ROLLOUTS_DIR)
        self.ledger = Ledger(run_dir / "ledger.jsonl")
        self.quarantine = Quarantine(run_dir / "quarantine.jsonl")
        self.events = Events(run_dir / "events.jsonl", self._show_event)
        self._logs: dict[str, AppendLog | RolloutLog] = {
            "metrics": self._recorder.metrics,
            "alarms": self._recorder.alarms,
            "quarantine": self.quarantine,
            "ledger": self.ledger,
            "rollouts": self._rollouts,
        }
        """Those that go back, by their name in `BookMarks`."""

    @property
    def raised_alarms(self) -> list[str]:
        """Names of those that the last step raised, or left raised."""
        return [alarm_name(metric) for metric, state in self._watch.states().items() if state]

    def on_step(self, result: StepResult) -> None:
        """Write down and show a finished step."""
        self._note(result)
        self.events.step = result.step
        alarms = self._watch.observe(result.step, result.phase, result.metrics)
        metrics = result.metrics | self._watch.states()
        self._display.step(result.step, result.phase, metrics)
        self._recorder.log(result.step, result.phase, metrics)
        for alarm in alarms:
            self._display.alarm(alarm)
            self._recorder.alarm(alarm)
        for error in result.failures:
            self._display.warn(f"step {result.step}: {error}")
        if num_unscored := round(result.metrics[names.REWARD_QUARANTINED]):
            self._display.warn(
                f"step {result.step}: responses without a score: {num_unscored}; see {self.quarantine.path}"
            )
        self.keep_groups(result.groups)

    def keep_groups(self, groups: Sequence[Group]) -> None:
        """Write down what was sampled; of a step without an update that is all."""
        self._rollouts.append(groups)

    def at_checkpoint(self, reached: TrainerState) -> DriverState:
        """Bring everything up to this step onto the disk; what the driver keeps in the checkpoint.

        Invariant: once a checkpoint is whole, the run folder holds all steps up to it, so that a run that resumes from
        it only ever drops what is later.

        Raises:
            ResourceError: disk full and the like.
        """
        with self._on_disk():
            self._recorder.flush()
            marks: dict[str, Any] = {name: log.mark() for name, log in self._logs.items()}
            sync(self.run_dir)
        score, self._values = (fmean(self._values) if self._values else None), []
        notes = self._notes.as_dict()
        return DriverState(reached, BookMarks(**marks), self._best_metric, score, notes, self._run_id)

    def rewind(self, state: DriverState | None) -> Sequence[OpenIssue]:
        """Take the whole run folder back to a checkpoint, or to the beginning of training (None); the issues that were
        open then. Newer checkpoints are set aside.

        Invariant: nothing is changed before every book is found to hold what it held then. Of a run that is refused
        over one of them the others would be cut.

        Raises:
            CheckpointError: the folder does not hold all that it held then.
            ResourceError: a file of it cannot be read, cut or renamed.
        """
        marks = state.books if state else BookMarks()
        with self._on_disk():
            for name, log in self._logs.items():
                log.check(getattr(marks, name))
            # First: a checkpoint that was refused, but could be read the next time, would find its books cut.
            aside = set_later_aside(self.run_dir, state.step if state else 0, self._run_id)
            for name, log in self._logs.items():
                log.rewind(getattr(marks, name))
            rows = self._recorder.go_back()
        self._notes.go_back(Notes(**state.notes) if state else Notes())
        self._values = []
        self._replay(rows)
        self.events.step = state.step if state else 0
        self.events.add(EventKind.REWIND, f"taken back to step {self.events.step}")
        for path in aside:
            self.events.add(EventKind.REWIND, f"a checkpoint that cannot be gone on with is kept as {path}")
        return self.ledger.open_issues

    def fail_open(self, reason: str) -> None:
        """End all that is open: the run ends over it."""
        for issue in self.ledger.open_issues:
            self.ledger.end(issue.issue_id, Outcome.FAILED, reason)

    def close(self) -> None:
        """Write what is left.

        Raises:
            ResourceError: disk full and the like.
        """
        for book in (self._recorder, self.ledger, self.quarantine, self.events):
            book.close()
        self._rollouts.flush()

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_written(self.run_dir, error) from error

    def _show_event(self, kind: EventKind, text: str) -> None:
        """What is no part of an undisturbed run."""
        is_under_way = bool(self.events.step)
        if kind in ALWAYS_SHOWN or (is_under_way and kind in SHOWN_LATER):
            self._display.event(text)

    def _replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Alarms look at steps that are long done; so does the display."""
        self._watch = AlarmWatch(self._config.alarms, self._config.train.phases)
        self._display.go_back(rows)
        for row in rows:
            self._watch.observe(row["step"], row["phase"], row)

    def _note(self, result: StepResult) -> None:
        metrics, notes = result.metrics, self._notes
        num_responses = sum(len(group.responses) for group in result.groups)
        notes.num_updates += 1
        if names.PARITY_GAP_MEAN in metrics:
            notes.num_gaps += 1
            notes.gap_sum += metrics[names.PARITY_GAP_MEAN]
            notes.gap_max = max(notes.gap_max, metrics[names.PARITY_GAP_MAX])
        notes.num_responses += num_responses
        notes.rollout_s += num_responses / metrics[names.ROLLOUT_RESPONSES_PER_S]
        if self._best_metric in metrics:
            self._values.append(metrics[self._best_metric])
