"""All that a run writes down while it trains: metrics, alarms, responses, the ledger, quarantine; and shows of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from museg_ray.config.schema import Config
from museg_ray.errors import ResourceError
from museg_ray.metrics import names
from museg_ray.metrics.alarms import AlarmWatch
from museg_ray.metrics.recorder import Recorder
from museg_ray.train.checkpoint import sync
from museg_ray.train.display import Display
from museg_ray.train.ledger import Ledger, RolloutLog
from museg_ray.train.quarantine import Quarantine
from museg_ray.train.rewind import rewind
from museg_ray.train.state import DriverState, Notes, TrainerState
from museg_ray.train.trainer import StepResult

STEPS_PER_LEDGER = 10
"""A run that is killed leaves books that are at most this many steps old."""


class Books:
    """The books of one run; `close` them in any case."""

    def __init__(
        self, config: Config, run_dir: Path, display: Display, notes: Notes, reached: DriverState | None = None
    ) -> None:
        """
        Args:
            config: of the run.
            run_dir: gets the files.
            display: is told of every step.
            notes: are kept up to date.
            reached: where a resumed run goes on: the folder is taken back to it.

        Raises:
            CheckpointError: the folder does not hold all that it held at the checkpoint.
        """
        self._run_dir, self._display, self._notes = run_dir, display, notes
        self._best_metric = config.checkpoint.best_metric
        self._values: list[float] = []  # of `best_metric`, since the checkpoint before
        self._watch = AlarmWatch(config.alarms, config.train.phases)
        rows = rewind(run_dir, reached) if reached else []
        self._replay(rows)
        earlier_s = rows[-1]["time_s"] if rows else 0.0
        self._recorder = Recorder(run_dir, run_dir.name, reached.step + 1 if reached else 1, earlier_s)
        self._rollouts = RolloutLog(run_dir / "rollouts.parquet")
        self.ledger = Ledger.read(self._ledger_path) if reached else Ledger()
        self.quarantine = Quarantine(run_dir / "quarantine.jsonl")

    def on_step(self, result: StepResult) -> None:
        """Write down and show a finished step."""
        self._note(result)
        alarms = self._watch.observe(result.step, result.phase, result.metrics)
        metrics = result.metrics | self._watch.states()
        self._display.step(result.step, result.phase, metrics)
        self._recorder.log(result.step, result.phase, metrics)
        for alarm in alarms:
            self._display.alarm(alarm)
            self._recorder.alarm(alarm)
        for error in result.unreadable:
            self._display.warn(f"step {result.step}: {error}")
        if num_unscored := round(result.metrics[names.REWARD_QUARANTINED]):
            self._display.warn(
                f"step {result.step}: responses without a score: {num_unscored}; see {self.quarantine.path}"
            )
        self._rollouts.append(result.step, result.phase, result.groups)
        if result.step % STEPS_PER_LEDGER == 0:
            self.ledger.write(self._ledger_path)

    def at_checkpoint(self, reached: TrainerState) -> DriverState:
        """Bring everything up to this step onto the disk; what the driver keeps in the checkpoint.

        Invariant: once a checkpoint is whole, the run folder holds all steps up to it, so that a run that resumes from
        it only ever drops what is later.

        Raises:
            ResourceError: disk full and the like.
        """
        try:
            self._flush()
        except OSError as error:
            raise ResourceError(
                f"The books of the run {self._run_dir} could not be written: {error.strerror or error}. Free disk "
                "space there, then go on with --resume (run.resume=true)."
            ) from error
        score, self._values = (fmean(self._values) if self._values else None), []
        return DriverState(reached, self.ledger.num_issues, self._best_metric, score, self._notes.as_dict())

    def close(self) -> None:
        """Write what is left."""
        self.ledger.write(self._ledger_path)
        self._rollouts.close()
        self._recorder.close()

    def _flush(self) -> None:
        self._rollouts.flush()
        self.ledger.write(self._ledger_path)
        self._recorder.flush()
        written = [path for path in self._run_dir.iterdir() if path.suffix in (".jsonl", ".parquet")]
        for path in (*self._rollouts.path.iterdir(), *written, self._run_dir):
            sync(path)

    @property
    def _ledger_path(self) -> Path:
        return self._run_dir / "ledger.parquet"

    def _replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Alarms look at steps that are long done; so does the display."""
        for row in rows:
            self._watch.observe(row["step"], row["phase"], row)
            self._display.earlier_step(row["step"], row["phase"], row)

    def _note(self, result: StepResult) -> None:
        metrics, notes = result.metrics, self._notes
        num_responses = sum(len(sampled.group.responses) for sampled in result.groups)
        notes.num_updates += 1
        notes.gap_sum += metrics[names.PARITY_GAP_MEAN]
        notes.gap_max = max(notes.gap_max, metrics[names.PARITY_GAP_MAX])
        notes.num_responses += num_responses
        notes.rollout_s += num_responses / metrics[names.ROLLOUT_RESPONSES_PER_S]
        if self._best_metric in metrics:
            self._values.append(metrics[self._best_metric])
