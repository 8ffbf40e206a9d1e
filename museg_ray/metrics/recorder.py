"""Records the numbers of every step: metrics.jsonl, TensorBoard and, where Ray runs, its metrics port; and alarms."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from museg_ray.append_log import AppendLog, Row
from museg_ray.metrics.alarms import Alarm
from museg_ray.metrics.names import METRICS
from museg_ray.metrics.ray_sink import RaySink


class Recorder:
    """Writes each step's metrics to every sink; one JSON line a step, so that a crash loses none."""

    def __init__(self, run_dir: Path, run_name: str) -> None:
        """Open the sinks of a run folder, behind what is in them.

        Args:
            run_dir: gets `metrics.jsonl`, `tensorboard/` and, with the first alarm, `alarms.jsonl`.
            run_name: the `run` tag of the Ray gauges.

        Raises:
            ResourceError: a file cannot be read or written.
        """
        self._tensorboard_dir = str(run_dir / "tensorboard")
        self.metrics, self.alarms = AppendLog(run_dir / "metrics.jsonl"), AppendLog(run_dir / "alarms.jsonl")
        self._tensorboard: SummaryWriter | None = None  # from the first step on: a run that is refused leaves none
        self._ray_sink = RaySink(run_name)
        self._started_s = time.monotonic()

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
        self.metrics.append([row])
        writer = self._open_tensorboard(None)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        self._ray_sink.write(step, values)

    def alarm(self, alarm: Alarm) -> None:
        """Append an alarm to `alarms.jsonl`; whether it still holds is in the metrics `alarm/*` of each step."""
        self.alarms.append([alarm.as_dict()])

    def flush(self) -> None:
        """What TensorBoard was given is on the disk when this returns."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def go_back(self) -> list[Row]:
        """Follow `metrics`, which was taken back; the steps that stay. TensorBoard cannot take back what it was given
        since, but it hides it. The time goes on from the last step that stays."""
        rows = list(self.metrics.rows())
        self._started_s = time.monotonic() - (rows[-1]["time_s"] if rows else 0.0)
        self.close()
        self._open_tensorboard(rows[-1]["step"] + 1 if rows else 1)
        return rows

    def close(self) -> None:
        """Flush and close the files."""
        self.metrics.close()
        self.alarms.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def _open_tensorboard(self, purge_step: int | None) -> SummaryWriter:
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(self._tensorboard_dir, flush_secs=10, purge_step=purge_step)
        return self._tensorboard
