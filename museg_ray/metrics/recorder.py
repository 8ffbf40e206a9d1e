"""Records the numbers of every step: metrics.jsonl, TensorBoard and, where Ray runs, its metrics port; and alarms."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from museg_ray.metrics.alarms import Alarm
from museg_ray.metrics.names import METRICS
from museg_ray.metrics.ray_sink import open_ray_sink


class Recorder:
    """Writes each step's metrics to every sink; one JSON line a step, flushed, so that a crash loses none."""

    def __init__(self, run_dir: Path, run_name: str, first_step: int = 1, earlier_s: float = 0.0) -> None:
        """Open the sinks of a run folder, behind what is in them.

        Args:
            run_dir: gets `metrics.jsonl`, `tensorboard/` and, with the first alarm, `alarms.jsonl`.
            run_name: the `run` tag of the Ray gauges.
            first_step: above 1 in a resumed run. TensorBoard cannot take back what it was given from this step on, but
                it then hides it.
            earlier_s: `time_s` of the last row that is there; the time goes on from it.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._alarms_path = run_dir / "alarms.jsonl"
        self._lines = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        purge_step = first_step if first_step > 1 else None
        self._tensorboard = SummaryWriter(str(run_dir / "tensorboard"), flush_secs=10, purge_step=purge_step)
        self._ray_sink = open_ray_sink(run_name)
        self._started_s = time.monotonic() - earlier_s

    def log(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """Record one step.

        Invariant: every value is finite and has a name of the table. A NaN that is written here turns up later as a
        gap in a curve, far from its cause, and a misspelt name as a curve that is missing.

        Args:
            step: optimiser step, from 1.
            phase: name of the training phase.
            values: metric name -> value, names from `museg_ray.metrics.names`.
        """
        for name, value in values.items():
            assert name in METRICS, f"unknown metric {name!r}: add it to museg_ray/metrics/names.py"
            assert math.isfinite(value), f"metric {name} is {value} at step {step}; metrics must be finite"
        time_s = round(time.monotonic() - self._started_s, 3)
        row = {"step": step, "phase": phase, "time_s": time_s} | {name: float(value) for name, value in values.items()}
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._ray_sink is not None:
            self._ray_sink.write(step, values)

    def alarm(self, alarm: Alarm) -> None:
        """Append an alarm to `alarms.jsonl`; whether it still holds is in the metrics `alarm/*` of each step."""
        with self._alarms_path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(alarm.as_dict()) + "\n")

    def flush(self) -> None:
        """Wait until all that was recorded is on the disk."""
        os.fsync(self._lines.fileno())
        self._tensorboard.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self._lines.close()
        self._tensorboard.close()
