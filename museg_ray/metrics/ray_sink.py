"""Metrics as Ray gauges: they appear on each node's metrics port as `ray_museg_<name>`, ready for Prometheus.

Ray exports no job id, so every gauge carries a `run` tag that tells runs on one cluster apart.
"""

from collections.abc import Mapping

import ray
from ray.util.metrics import Gauge

from museg_ray.metrics.names import METRICS

STEP_GAUGE = "museg_step"


def gauge_name(metric: str) -> str:
    """`reward/total` -> `museg_reward_total`: Prometheus allows no slash."""
    return "museg_" + metric.replace("/", "_")


class RaySink:
    """Sets one gauge a metric, where Ray is initialised."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._gauges: dict[str, Gauge] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Set the gauges of `values` and `museg_step`."""
        if not ray.is_initialized():
            return
        self._set(STEP_GAUGE, "last finished optimiser step", step)
        for name, value in values.items():
            metric = METRICS[name]
            self._set(gauge_name(name), f"{metric.meaning} [{metric.unit}]", value)

    def _set(self, name: str, description: str, value: float) -> None:
        if name not in self._gauges:
            gauge = Gauge(name, description=description, tag_keys=("run",))
            gauge.set_default_tags({"run": self._run_name})
            self._gauges[name] = gauge
        self._gauges[name].set(value)
