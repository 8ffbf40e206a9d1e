import re
import time
import urllib.error
import urllib.request

import ray

from museg_ray.metrics import names
from museg_ray.metrics.ray_sink import RaySink, gauge_name

EXPORT_DEADLINE_S = 90.0
"""Ray exports metrics every 10 s, and here every second."""


def read_metrics_port() -> str:
    port = ray.nodes()[0]["MetricsExportPort"]
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except urllib.error.URLError:  # the agent is still starting
        return ""


def test_every_gauge_name_is_one_that_prometheus_takes():
    gauges = {gauge_name(metric) for metric in names.METRICS}
    assert len(gauges) == len(names.METRICS)
    assert all(re.fullmatch(r"museg_[a-z0-9_]+", gauge) for gauge in gauges)


def test_values_appear_on_the_metrics_port_with_the_run_as_tag(ray_local: None):
    RaySink("gauge-test").write(3, {names.REWARD_TOTAL: 1.5})
    deadline_s = time.monotonic() + EXPORT_DEADLINE_S
    exported = ""
    while "ray_museg_reward_total{" not in exported and time.monotonic() < deadline_s:
        exported = read_metrics_port()
        time.sleep(0.1)
    assert re.search(r'^ray_museg_reward_total\{.*run="gauge-test".*\} 1\.5$', exported, re.MULTILINE)
    assert re.search(r'^ray_museg_step\{.*run="gauge-test".*\} 3\.0$', exported, re.MULTILINE)
