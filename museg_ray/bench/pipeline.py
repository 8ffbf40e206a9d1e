"""`museg bench pipeline`: what the driver adds to the work of engines and learner, and how that scales.

The real trainer, crews, pools and books over fakes that wait instead of computing (pipeline_run.py): all time beside
their waiting is the driver's.
"""

import gc
import math
import time
from dataclasses import dataclass
from itertools import chain
from statistics import median

from museg_ray.bench.pipeline_books import CHECKPOINT, STEP, measure_books
from museg_ray.bench.pipeline_fakes import GROUP_SIZE, Waits
from museg_ray.bench.pipeline_run import make_config, train_fakes
from museg_ray.bench.result import BenchResult, Row, Target, Tell, at_most, compared
from museg_ray.bench.simulated_loop import SimulatedLoop
from museg_ray.ledger.rollout_log import STEPS_PER_PART
from museg_ray.metrics import names
from museg_ray.train.parts import Parts

WARM_UP_STEPS = 3
LOADS = ((1, 1), (2, 1), (1, 2))
"""Rollouts against update."""
OVERLAP_GROUPS, OVERLAP_ACTORS = 4, 2
"""The groups of a step fill the actors: what only waits would else sample the next step's beside them."""
SCALING_GROUPS = 12
"""Of a step: one, two or three actors, which sample one at a time, share them evenly."""
SCALING_ACTORS = (1, 2, 3)
SIMULATED_GROUP_S, SIMULATED_SPREAD_S, SIMULATED_UPDATE_S = 2.0, 10.0, 8.0
"""Groups come in between 2 and 12 s after their issue, then an update takes 8 s."""
SIMULATED_STEP_S = SIMULATED_GROUP_S + SIMULATED_SPREAD_S + SIMULATED_UPDATE_S
OVERLAP_TARGET, SCALING_TARGET, DRIVER_TARGET = 1.15, 0.10, 0.02
BOOKS_TARGET_MS, CHECKPOINT_TARGET_MS = 5.0, 200.0

Found = tuple[list[Row], list[Target]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    wait_s: float = 0.15
    """Of the lighter side of a load: the driver's own work is small beside it."""
    num_steps: int = 10
    """Measured of each load."""
    group_s: float = 0.05
    """That an actor takes for a group where more and more actors come."""
    num_scaling_steps: int = 5
    """Measured of each number of actors."""
    num_actors: tuple[int, ...] = (64, 256, 1024)
    """The target is for the last."""
    prompts_per_step: int = 512
    """With so many actors; in groups of 8."""
    num_driver_steps: int = STEPS_PER_PART
    """Measured: so many that one of them writes a part of the rollout log."""
    num_issues: int = 1_000_000
    """In the ledger before the books are measured."""
    num_rounds: int = 9
    """Of the books; the least disturbed counts."""


FULL = Sizes()


def bench_pipeline(tell: Tell, sizes: Sizes = FULL) -> BenchResult:
    """
    Args:
        tell: is told what is being done.
        sizes: how much is measured.

    Raises:
        ResourceError: the books cannot be written.
    """
    found = [part(sizes, tell) for part in (measure_overlap, measure_scaling, measure_driver, measure_late_books)]
    rows, targets = zip(*found, strict=True)
    return BenchResult("pipeline", tuple(chain(*rows)), tuple(chain(*targets)))


def measure_overlap(sizes: Sizes, tell: Tell) -> Found:
    """A step's time over the longer one of its rollouts and its update: in turns (k = 0), and overlapping (k = 1)."""
    rows, targets = list[Row](), list[Target]()
    for max_staleness in (0, 1):
        for rollout, update in LOADS:
            case = f"rollout:learner {rollout}:{update}"
            tell(f"a step at k = {max_staleness}, {case}")
            step_ms = _step_ms(sizes, rollout * sizes.wait_s, update * sizes.wait_s, max_staleness)
            what = f"step, k = {max_staleness} / longer wait"
            row = compared(what, case, step_ms, 1e3 * sizes.wait_s * max(rollout, update))
            rows.append(row)
            if max_staleness:
                targets.append(at_most(f"{what}, {case}", float(row["ratio"]), OVERLAP_TARGET))
    return rows, targets


def _step_ms(sizes: Sizes, rollout_s: float, update_s: float, max_staleness: int) -> float:
    num_steps, groups_per_actor = WARM_UP_STEPS + sizes.num_steps, OVERLAP_GROUPS // OVERLAP_ACTORS
    config = make_config(num_steps, OVERLAP_ACTORS, OVERLAP_GROUPS, groups_per_actor, max_staleness)
    steps = train_fakes(config, Waits(rollout_s, update_s))
    return 1e3 * median(step[names.TIME_STEP_S] for step in steps[WARM_UP_STEPS:])


def measure_scaling(sizes: Sizes, tell: Tell) -> Found:
    """A step's time in a running job that gets more and more actors, over its time with one divided by their number."""
    tell("more rollout actors in a running job")
    steps_each = WARM_UP_STEPS + sizes.num_scaling_steps

    def resize(parts: Parts, step: int) -> None:
        parts.rollouts.resize(SCALING_ACTORS[(step - 1) // steps_each])

    config = make_config(len(SCALING_ACTORS) * steps_each, 1, SCALING_GROUPS, groups_per_actor=1, max_staleness=1)
    times_ms = [1e3 * step[names.TIME_STEP_S] for step in train_fakes(config, Waits(sizes.group_s), resize)]
    step_ms = [
        median(times_ms[place * steps_each + WARM_UP_STEPS : (place + 1) * steps_each])
        for place in range(len(SCALING_ACTORS))
    ]
    rows = [
        compared("step / one actor's share", f"rollout actors: {num_actors}", ms, step_ms[0] / num_actors)
        for num_actors, ms in zip(SCALING_ACTORS, step_ms, strict=True)
    ]
    worst = max(abs(1.0 / float(row["ratio"]) - 1.0) for row in rows)
    return rows, [at_most("throughput of 1, 2 and 3 rollout actors, off their number by", worst, SCALING_TARGET)]


def measure_driver(sizes: Sizes, tell: Tell) -> Found:
    """Process time of a simulated step, over that step's length. The little that the fakes need is among it: they give
    what was made beforehand. So are pings, as asking so many actors costs more with Ray than with fakes."""
    rows = list[Row]()
    for num_actors in sizes.num_actors:
        tell(f"the driver with {num_actors:,} rollout actors")
        case = f"rollout actors: {num_actors:,}"
        step_ms = 1e3 * _process_time_s(sizes, num_actors)
        rows.append(compared("driver's CPU time / step", case, step_ms, 1e3 * SIMULATED_STEP_S))
    name = f"{rows[-1]['measured']}, {rows[-1]['case']}, {sizes.prompts_per_step * GROUP_SIZE:,} responses"
    return rows, [at_most(name, float(rows[-1]["ratio"]), DRIVER_TARGET)]


def _process_time_s(sizes: Sizes, num_actors: int) -> float:
    """Mean of a step, from update to update."""
    used_s = list[float]()
    groups_per_actor = math.ceil(sizes.prompts_per_step / num_actors)
    gc.freeze()  # as a run does, once its parts are up
    train_fakes(
        make_config(sizes.num_driver_steps + 1, num_actors, sizes.prompts_per_step, groups_per_actor),
        Waits(SIMULATED_GROUP_S, SIMULATED_UPDATE_S, SIMULATED_SPREAD_S),
        lambda parts, step: used_s.append(time.process_time()),
        SimulatedLoop,
    )
    gc.unfreeze()
    return (used_s[-1] - used_s[0]) / sizes.num_driver_steps


def measure_late_books(sizes: Sizes, tell: Tell) -> Found:
    """What the event loop spends on the books late in a run, over the same at its beginning."""
    tell(f"the books at issue {sizes.num_issues:,}")
    first, late = measure_books(sizes.num_issues, sizes.num_rounds)
    case = f"issue {sizes.num_issues:,}"
    rows = [compared(f"{what} / first issue", case, ms, first[what]) for what, ms in late.items()]
    return rows, [
        at_most(f"a step's books at {case}, ms", late[STEP], BOOKS_TARGET_MS),
        at_most(f"a checkpoint's books at {case}, ms", late[CHECKPOINT], CHECKPOINT_TARGET_MS),
    ]
