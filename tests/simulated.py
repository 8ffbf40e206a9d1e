"""Runs in simulated time."""

import asyncio
from typing import Any

from museg_ray.bench.simulated_loop import SimulatedLoop


def run_simulated(work: Any) -> Any:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)
