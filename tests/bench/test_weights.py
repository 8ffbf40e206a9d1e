"""The bench of a push, small."""

import os
import shutil

import psutil

from museg_ray.bench.weights import bench_weights


def test_a_push_is_measured_against_a_copy_the_other_way_and_a_second_machine() -> None:
    result = bench_weights(0.01, 1, lambda text: None)
    measured = [str(row["measured"]) for row in result.rows]
    assert measured[:4] == [
        "push / one plain copy",
        "ranks write / one plain copy",
        "engines copy (their pause) / one plain copy",
        "by whole tensors, blob, files / push",
    ]
    assert all(float(row["ms"]) > 0 for row in result.rows)
    targets = {target.name: target for target in result.targets}
    assert targets["MiB a process has beside the file and its own weights"].met
    if os.geteuid() == 0 and shutil.which("ip"):
        assert measured[4] == "to a second machine / one plain copy"
        assert 1.0 <= targets["bytes that cross to it over those of the weights"].value < 1.05
        assert not [name for name in psutil.net_if_addrs() if name.startswith("museg")]
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
