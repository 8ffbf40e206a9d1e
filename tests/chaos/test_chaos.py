"""A short run of the real stack whose processes are killed at random: a few minutes of `make chaos`."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.harness import Run, inspect, torment
from tests.train.conftest import run_environment, short_overrides

NUM_STEPS = 6
__all__ = ["run_environment", "short_overrides"]  # fixtures


@pytest.mark.timeout(600)
def test_a_run_whose_processes_are_killed_ends_with_whole_books(
    run_environment: dict[str, str], short_overrides: list[str], tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10_000)
    phases = f"train.phases=[{{name: only, steps: {NUM_STEPS}, prompt: 'Find {{question}}.'}}]"
    overrides = [*short_overrides, phases, "rollout.num_actors=2", "evaluation.num_queries=4", "rollout.num_threads=1"]
    overrides += ["rewards.num_actors=2", "checkpoint.every_steps=2"]  # one may be there when the driver is killed
    with Run(str(Path(sys.executable).with_name("museg")), tmp_path / "run", run_environment, overrides) as run:
        report = torment(run, num_driver_kills=1, seed=seed, num_steps=NUM_STEPS, timeout_s=500, tell=print)
    inspect(run.folder, NUM_STEPS, 1, report)
    assert not report.faults, f"seed {seed}, kills {dict(report.kills)}: {report.faults}"
    assert report.kills.total() >= 2


JOINED = """
import ray
from tests.chaos.recovery import nodes
with nodes():
    print(len(ray.nodes()), ray.cluster_resources()["CPU"])
"""


def test_the_nodes_of_the_recovery_find_each_other() -> None:
    """A local Ray keeps to the loopback address, where none but itself would reach it."""
    done = subprocess.run([sys.executable, "-c", JOINED], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["2", "2.0"], done.stderr
