"""Overlap on the real stack, for `museg bench pipeline --real`: the demo's first steps, in turns and overlapping."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from museg_ray.append_log import read_rows
from museg_ray.bench.result import Row, compared
from museg_ray.errors import ResourceError
from museg_ray.metrics import names

NUM_STEPS, WARM_UP_STEPS = 24, 4
SETTINGS = (
    f"train.phases=[{{name: only, steps: {NUM_STEPS}, prompt: 'Find every time {{question}}.'}}]",
    "data.synthetic.num_train_videos=40",
    "data.synthetic.num_heldout_videos=4",
    "evaluation.num_queries=4",
    "checkpoint.every_steps=0",
    # One engine and one learner thread: each side a core of its own, as each has GPUs of its own on a cluster.
    "rollout.num_actors=1",
    "rollout.num_threads=1",
    "learner.num_threads=1",
)
STALENESS = {0: (), 1: ("train.max_staleness=1", "algo.correction=truncate")}


def measure_real_overlap(tell: Callable[[str], None]) -> list[Row]:
    """A step of the demo over the longer one of its two sides, as these take when they have the machine in turns.

    Reported without a target: on two cores, engine, learner, driver and Ray share what each would have of its own.

    Raises:
        ResourceError: a run failed.
    """
    step_ms = dict[int, float]()
    with TemporaryDirectory(prefix="museg-bench-") as folder:
        for max_staleness, settings in STALENESS.items():
            tell(f"the demo's first steps at k = {max_staleness}")
            steps = _train(Path(folder) / f"k{max_staleness}", settings)
            step_ms[max_staleness] = 1e3 * median(step[names.TIME_STEP_S] for step in steps)
            if not max_staleness:
                longer_ms = 1e3 * max(
                    median(step[names.TIME_WAIT_S] for step in steps),
                    median(step[names.TIME_LEARNER_S] + step[names.TIME_SYNC_S] for step in steps),
                )
    return [
        compared(f"step, k = {max_staleness} / longer side", "real stack, this machine", ms, longer_ms)
        for max_staleness, ms in step_ms.items()
    ]


def push_phases(tell: Callable[[str], None]) -> list[Row]:
    """Each phase of the demo's pushes while requests are in flight: its median over the 95th percentile.

    Raises:
        ResourceError: the run failed.
    """
    tell("pushes of the demo's first steps at k = 1")
    with TemporaryDirectory(prefix="museg-bench-") as folder:
        steps = _train(Path(folder) / "run", STALENESS[1])
    rows = []
    for phase, name in names.PUSH_PHASES_S.items():
        ms = [1e3 * step[name] for step in steps]
        rows.append(compared(f"{phase}, median / p95", "demo, k = 1", median(ms), quantiles(ms, n=20)[-1]))
    return rows


def _train(run_dir: Path, settings: tuple[str, ...]) -> list[dict[str, float]]:
    """The metrics of its steps but the first ones."""
    command = [sys.executable, "-c", "from museg_ray.cli.main import main; main()", "demo", "--run-dir", str(run_dir)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run([*command, *SETTINGS, *settings], capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise ResourceError(f"The demo failed: {(ended.stderr or ended.stdout)[-1000:]}")
    return [row for row in read_rows(run_dir / "metrics.jsonl") if row["step"] > WARM_UP_STEPS]
