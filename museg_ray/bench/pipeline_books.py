"""What the books of a run cost the event loop, at its first issue and at the millionth."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np

from museg_ray.bench.pipeline_fakes import GROUP_SIZE, OUTCOMES, RESPONSES
from museg_ray.bench.pipeline_run import PHASE, QUERIES, make_config, open_books
from museg_ray.checkpoints.state import TrainerState
from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.ledger.ledger import Ledger, Outcome
from museg_ray.ledger.rollout_log import STEPS_PER_PART
from museg_ray.metrics.names import ALARMS, METRICS
from museg_ray.runs.step_result import StepResult
from museg_ray.types import Group, Issue

PROMPTS_PER_STEP = 14
STEPS_TO_CHECKPOINT = 5
"""Written since the last part of the rollout log: a checkpoint writes them down, too."""
LINES_A_WRITE = 10_000
FIRST_ID = b'"issue_id": 0,'
NOT_IN_EVERY_STEP = {*ALARMS, *(f"reward/{name}" for name in FURTHER_REWARDS)}
METRICS_OF_STEP = {name: 0.5 for name in METRICS if name not in NOT_IN_EVERY_STEP}
"""As many as a run has; the values do not matter."""


STEP, SLOWEST_STEP, CHECKPOINT, OPENING = "step's books", f"slowest of {STEPS_PER_PART}", "checkpoint", "opening them"
Times = dict[str, float]
"""Milliseconds in which the event loop does nothing else, by what: the mean of the steps up to a part of the rollout
log, the one that writes it included; the slowest of these; a checkpoint; opening them all at the start of a run."""


def measure_books(num_issues: int, num_rounds: int) -> tuple[Times, Times]:
    """At the first issue of a run, and behind `num_issues` of them, of the least disturbed round. In turns: a machine
    that others use too changes its speed."""
    with TemporaryDirectory(prefix="museg-bench-") as first_dir, TemporaryDirectory(prefix="museg-bench-") as late_dir:
        first, late = _Run(Path(first_dir), 0), _Run(Path(late_dir), num_issues)
        for run in (first, late):
            run.round()  # the first one imports
        rounds = [(first.round(), late.round()) for _ in range(num_rounds)]
        for run in (first, late):
            run.books.close()
    of_first, of_late = zip(*rounds, strict=True)
    return first.times(of_first), late.times(of_late)


class _Run:
    """The books of a run that has had so many issues."""

    def __init__(self, run_dir: Path, num_issues: int) -> None:
        write_ledger(run_dir / "ledger.jsonl", num_issues)
        self._step = num_issues // PROMPTS_PER_STEP
        config = make_config(self._step + 1, 1, PROMPTS_PER_STEP, PROMPTS_PER_STEP)
        start_s = time.perf_counter()
        self.books = open_books(config, run_dir)
        self._opening_ms = _ms_since(start_s)
        assert self.books.ledger.num_issues == num_issues and not self.books.ledger.open_issues

    def times(self, rounds: Sequence[Times]) -> Times:
        return {what: min(times[what] for times in rounds) for what in rounds[0]} | {OPENING: self._opening_ms}

    def round(self) -> Times:
        """All but the opening; the checkpoint comes some steps later."""
        steps_ms = [self._step_ms() for _ in range(STEPS_PER_PART)]
        for _ in range(STEPS_TO_CHECKPOINT):
            self._step_ms()
        state = TrainerState(self._step, PHASE, self._step, self._step, {}, {}, num_empty=0, untold=[])
        start_s = time.perf_counter()
        self.books.at_checkpoint(state)
        return {STEP: fmean(steps_ms), SLOWEST_STEP: max(steps_ms), CHECKPOINT: _ms_since(start_s)}

    def _step_ms(self) -> float:
        """Of all that is written down from the issue of a step's queries to its end."""
        self._step += 1
        books = self.books
        groups = [_group(books.ledger.num_issues + place, self._step) for place in range(PROMPTS_PER_STEP)]
        result = StepResult(self._step, PHASE, groups, [], dict(METRICS_OF_STEP))
        start_s = time.perf_counter()
        books.ledger.issue([group.issue for group in groups])
        for group in groups:
            books.ledger.end(group.issue.issue_id, Outcome.TRAINED, weight_version=group.weight_version)
        books.on_step(result)
        return _ms_since(start_s)


def write_ledger(path: Path, num_issues: int) -> None:
    """As a run leaves it that has trained on so many issues: the lines of one issue, under other ids."""
    if not num_issues:
        return
    ledger = Ledger(path)
    ledger.issue([Issue(0, QUERIES[0], PHASE, seed=0, step=1)])
    ledger.end(0, Outcome.TRAINED, weight_version=0)
    lines = path.read_bytes()
    assert lines.count(FIRST_ID) == 2
    with path.open("wb") as file:
        for first in range(0, num_issues, LINES_A_WRITE):
            ids = range(first, min(first + LINES_A_WRITE, num_issues))
            file.write(b"".join(lines.replace(FIRST_ID, b'"issue_id": %d,' % issue_id) for issue_id in ids))
        file.flush()
        os.fsync(file.fileno())  # a run's own were on the disk long ago


def _group(issue_id: int, step: int) -> Group:
    return Group(
        issue=Issue(issue_id, QUERIES[issue_id % len(QUERIES)], PHASE, seed=issue_id, step=step),
        clip_key="clip",
        clip_duration_s=12.0,
        prompt_ids=(1,),
        responses=RESPONSES,
        weight_version=step - 1,
        outcomes=OUTCOMES,
        advantages=np.zeros(GROUP_SIZE, np.float32),
    )


def _ms_since(start_s: float) -> float:
    return 1e3 * (time.perf_counter() - start_s)
