"""`museg bench pipeline`: what the driver adds to the work of engines and learner, and how it scales.

Real trainer, crews, pools and books over fakes that wait instead of computing (pipeline_run.py), so that all time beside
their waiting is ours.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from museg_ray.bench.pipeline_books import measure_books
from museg_ray.bench.pipeline_recovery import measure_recovery
from museg_ray.bench.pipeline_run import GROUP_SIZE, Meter, Waits, make_config, train_fakes
from museg_ray.bench.result import BenchResult, Row, Target
from museg_ray.ledger.rollout_log import STEPS_PER_PART
from museg_ray.metrics import names
from museg_ray.simulate.loop import SimulatedLoop
from museg_ray.train.parts import Parts

WARM_UP_STEPS = 3
LOADS = ((1, 1), (2, 1), (1, 2))
"""Rollout against learner."""
OVERLAP_GROUPS, OVERLAP_ACTORS = 4, 2
"""The groups of a step fill the actors: an engine that only waits would else sample the next step's beside them."""
SCALING_GROUPS = 12
"""A step's, shared out evenly over one, two or three actors, which sample one at a time."""
SCALING_ACTORS = (1, 2, 3)
STEP_S = 20.0
"""Simulated, of the steps whose own cost of the driver is measured: groups come in between 2 and 12 s, then an update of
8 s."""
GROUP_S, SPREAD_S, UPDATE_S = 2.0, 10.0, 8.0
OVERLAP_TARGET, DRIVER_TARGET, BOOKS_TARGET_MS, CHECKPOINT_TARGET_MS, SCALING_TARGET = 1.15, 0.02, 5.0, 200.0, 0.10

Found = tuple[list[Row], list[Target]]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    wait_s: float = 0.1
    """Of the lighter side of a load, on the real clock."""
    num_steps: int = 15
    """Measured of each load."""
    num_actors: tuple[int, ...] = (64, 256, 1024)
    prompts_per_step: int = 512
    """With that many actors; in groups of 8."""
    num_scaling_steps: int = 5
    """Measured of each number of actors."""
    num_driver_steps: int = STEPS_PER_PART
    """Measured: so many that one of them writes a part of the rollout log."""
    num_issues: int = 1_000_000
    """In the ledger before the books are measured."""
    num_rounds: int = 5
    """Measurements of the books; the median counts."""


FULL = Sizes()


def bench_pipeline(tell: Tell, is_real: bool = False, sizes: Sizes = FULL) -> BenchResult:
    """
    Args:
        tell: is told what is being done.
        is_real: also on the real stack.
        sizes: how much is measured.

    Raises:
        ResourceError: a folder for the books cannot be written.
    """
    found = [measure(sizes, tell) for measure in (measure_overlap, measure_driver, measure_at_length, measure_scaling)]
    if is_real:
        found.append(measure_recovery(tell))
    rows = [row for of_part, _ in found for row in of_part]
    targets = [target for _, of_part in found for target in of_part]
    return BenchResult("pipeline", tuple(rows), tuple(targets))


def measure_overlap(sizes: Sizes, tell: Tell) -> Found:
    """A step's time over what the longer one of its rollouts and its update waits: in turns (k = 0), and overlapping."""
    rows, targets = list[Row](), list[Target]()
    for max_staleness in (0, 1):
        for rollout, update in LOADS:
            load = f"rollout : learner {rollout}:{update}"
            tell(f"overlap at k = {max_staleness}, {load}")
            step_ms = _step_ms(sizes, rollout * sizes.wait_s, update * sizes.wait_s, max_staleness)
            what = f"step at k = {max_staleness} / the longer of rollout and learner"
            rows.append(_row(what, load, step_ms, 1e3 * sizes.wait_s * max(rollout, update)))
            if max_staleness:
                targets.append(_at_most(f"{what}, {load}", float(rows[-1]["ratio"]), OVERLAP_TARGET))
    return rows, targets


def _step_ms(sizes: Sizes, rollout_s: float, update_s: float, max_staleness: int) -> float:
    num_steps = WARM_UP_STEPS + sizes.num_steps
    at_once = OVERLAP_GROUPS // OVERLAP_ACTORS
    config = make_config(num_steps, OVERLAP_ACTORS, OVERLAP_GROUPS, at_once, max_staleness)
    steps = train_fakes(config, Waits(rollout_s, update_s))
    return 1e3 * median(step[names.TIME_STEP_S] for step in steps[WARM_UP_STEPS:])


def measure_driver(sizes: Sizes, tell: Tell) -> Found:
    """Process time of the driver over a step of 20 simulated seconds. Not counted is what the fakes need, which their
    meter knows: all that runs inside their calls, but for pings."""
    rows = list[Row]()
    for num_actors in sizes.num_actors:
        tell(f"the driver with {num_actors:,} rollout actors")
        own_s, fakes_s = _driver_s(sizes, num_actors)
        case = f"{num_actors:,} rollout actors"
        rows.append(_row("driver's own processor time / step", case, 1e3 * own_s, 1e3 * STEP_S))
        rows.append(_row("not counted: the fakes' / step", case, 1e3 * fakes_s, 1e3 * STEP_S))
    num_responses = sizes.prompts_per_step * GROUP_SIZE
    name = f"driver's own processor time / step, {case}, {num_responses:,} responses"
    return rows, [_at_most(name, own_s / STEP_S, DRIVER_TARGET)]


def _driver_s(sizes: Sizes, num_actors: int) -> tuple[float, float]:
    """Seconds a step, from update to update: the driver's own, and the fakes'."""
    meter, used = Meter(), list[tuple[float, float]]()
    config = make_config(
        num_steps=sizes.num_driver_steps + 1,
        num_actors=num_actors,
        prompts_per_step=sizes.prompts_per_step,
        groups_per_actor=math.ceil(sizes.prompts_per_step / num_actors),
    )
    train_fakes(
        config,
        Waits(GROUP_S, UPDATE_S, SPREAD_S),
        lambda parts, step: used.append((time.process_time(), meter.cpu_s)),
        meter,
        SimulatedLoop,
    )
    all_s, fakes_s = ((last - first) / sizes.num_driver_steps for first, last in zip(used[0], used[-1], strict=True))
    return all_s - fakes_s, fakes_s


def measure_at_length(sizes: Sizes, tell: Tell) -> Found:
    """What the event loop spends on the books late in a run, over the same at its beginning."""
    tell("the books at the first issue")
    first = measure_books(0, sizes.num_rounds)
    tell(f"the books at issue {sizes.num_issues:,}")
    late = measure_books(sizes.num_issues, sizes.num_rounds)
    case = f"at issue {sizes.num_issues:,}"
    rows = [
        _row("books of a step / at the first issue", case, late.step_ms, first.step_ms),
        _row("slowest step's books / at the first issue", case, late.slowest_step_ms, first.slowest_step_ms),
        _row("checkpoint's books / at the first issue", case, late.checkpoint_ms, first.checkpoint_ms),
        _row("opening the books / at the first issue", case, late.open_ms, first.open_ms),
    ]
    return rows, [
        _at_most(f"books of a step {case}, ms", late.step_ms, BOOKS_TARGET_MS),
        _at_most(f"checkpoint's books {case}, ms", late.checkpoint_ms, CHECKPOINT_TARGET_MS),
    ]


def measure_scaling(sizes: Sizes, tell: Tell) -> Found:
    """A step's time while a running job gets more actors, over that with one actor divided by their number."""
    tell("more rollout actors in a running job")
    steps_each = WARM_UP_STEPS + sizes.num_scaling_steps

    def resize(parts: Parts, step: int) -> None:
        parts.rollouts.resize(SCALING_ACTORS[(step - 1) // steps_each])

    config = make_config(len(SCALING_ACTORS) * steps_each, 1, SCALING_GROUPS, groups_per_actor=1, max_staleness=1)
    steps = train_fakes(config, Waits(sizes.wait_s / 2), resize)
    one_ms, rows = 0.0, list[Row]()
    for place, num_actors in enumerate(SCALING_ACTORS):
        measured = steps[place * steps_each + WARM_UP_STEPS : (place + 1) * steps_each]
        step_ms = 1e3 * median(step[names.TIME_STEP_S] for step in measured)
        one_ms = one_ms or step_ms
        rows.append(
            _row("step / one actor's by their number", f"{num_actors} waiting actors", step_ms, one_ms / num_actors)
        )
    worst = max(abs(1.0 / float(row["ratio"]) - 1.0) for row in rows)
    return rows, [_at_most("throughput of 1 to 3 waiting actors, off their number by", worst, SCALING_TARGET)]


def _row(what: str, case: str, ms: float, against_ms: float) -> Row:
    """`what` reads `this / that`: milliseconds of this, of that, and their ratio."""
    return {"measured": what, "case": case, "ms": ms, "against, ms": against_ms, "ratio": ms / against_ms}


def _at_most(name: str, value: float, target: float) -> Target:
    return Target(name, value, target, value <= target)
