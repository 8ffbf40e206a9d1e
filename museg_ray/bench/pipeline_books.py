"""What the books of a run cost the event loop, at its first issue and at the millionth."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np

from museg_ray.bench.pipeline_run import GROUP_SIZE, OUTCOMES, PHASE, QUERIES, RESPONSES, make_config, open_books
from museg_ray.checkpoints.state import TrainerState
from museg_ray.config.schema import FURTHER_REWARDS
from museg_ray.ledger.ledger import Ledger, Outcome
from museg_ray.ledger.rollout_log import STEPS_PER_PART
from museg_ray.metrics.names import ALARMS, METRICS
from museg_ray.runs.books import Books
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


@dataclass(frozen=True, slots=True)
class BooksTimes:
    """Wall-clock milliseconds that the event loop does nothing else; medians over the rounds."""

    open_ms: float
    """Once, at the start of a run."""
    step_ms: float
    """Mean of the steps up to a part of the rollout log, the one that writes it included."""
    slowest_step_ms: float
    """Of these."""
    checkpoint_ms: float


def measure_books(num_issues: int, num_rounds: int) -> BooksTimes:
    """Times of a run that has had `num_issues` issues."""
    with TemporaryDirectory(prefix="museg-bench-") as folder:
        run_dir = Path(folder)
        write_ledger(run_dir / "ledger.jsonl", num_issues)
        start_s = time.perf_counter()
        books = open_books(make_config(num_issues + 1, 1, PROMPTS_PER_STEP, PROMPTS_PER_STEP), run_dir)
        open_ms = _ms_since(start_s)
        assert books.ledger.num_issues == num_issues and not books.ledger.open_issues
        step = num_issues // PROMPTS_PER_STEP
        _round(books, step)  # the first one imports
        rounds = [_round(books, books.events.step) for _ in range(num_rounds)]
        books.close()
    means, slowest, checkpoints = (median(column) for column in zip(*rounds, strict=True))
    return BooksTimes(open_ms, means, slowest, checkpoints)


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


def _round(books: Books, step: int) -> tuple[float, float, float]:
    """Milliseconds of a step, of the slowest one, and of a checkpoint some steps later."""
    steps_ms = [_step_ms(books, step + 1 + index) for index in range(STEPS_PER_PART)]
    for index in range(STEPS_TO_CHECKPOINT):
        _step_ms(books, step + 1 + STEPS_PER_PART + index)
    reached = books.events.step
    state = TrainerState(reached, PHASE, reached, reached, {}, {}, num_empty=0, untold=[])
    start_s = time.perf_counter()
    books.at_checkpoint(state)
    return fmean(steps_ms), max(steps_ms), _ms_since(start_s)


def _step_ms(books: Books, step: int) -> float:
    """Of all that is written down from the issue of a step's queries to its end."""
    groups = [_group(books.ledger.num_issues + place, step) for place in range(PROMPTS_PER_STEP)]
    result = StepResult(step, PHASE, groups, [], dict(METRICS_OF_STEP))
    start_s = time.perf_counter()
    books.ledger.issue([group.issue for group in groups])
    for group in groups:
        books.ledger.end(group.issue.issue_id, Outcome.TRAINED, weight_version=group.weight_version)
    books.on_step(result)
    return _ms_since(start_s)


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
