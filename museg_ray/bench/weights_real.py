"""Pushes of the real stack with requests in flight, for `museg bench weights --real`: the demo's first steps."""

import os
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from museg_ray.append_log import read_rows
from museg_ray.bench.result import Row, Tell, compared
from museg_ray.errors import ResourceError
from museg_ray.metrics import names

NUM_STEPS, WARM_UP_STEPS = 24, 4
SETTINGS = (
    f"train.phases=[{{name: only, steps: {NUM_STEPS}, prompt: 'Find every time {{question}}.'}}]",
    "data.synthetic.num_train_videos=40",
    "data.synthetic.num_heldout_videos=4",
    "evaluation.num_queries=4",
    "checkpoint.every_steps=0",
    "train.max_staleness=1",
    "algo.correction=truncate",
)


def push_phases(tell: Tell) -> list[Row]:
    """Each phase's median over its 95th percentile.

    Raises:
        ResourceError: the run failed.
    """
    tell("pushes of the demo's first steps at k = 1")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with TemporaryDirectory(prefix="museg-bench-") as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "museg_ray.cli.main", "demo", "--run-dir", str(run_dir), *SETTINGS]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if ended.returncode:
            raise ResourceError(f"The demo failed: {(ended.stderr or ended.stdout)[-1000:]}")
        steps = [row for row in read_rows(run_dir / "metrics.jsonl") if row["step"] > WARM_UP_STEPS]
    rows = []
    for phase, name in names.PUSH_PHASES_S.items():
        ms = [1e3 * step[name] for step in steps]
        rows.append(compared(f"{phase}, median / p95", "demo, k = 1", median(ms), quantiles(ms, n=20)[-1]))
    return rows
