"""One measurement in a process of its own, so that its peak memory is its alone."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from museg_ray.errors import ResourceError

Facts = dict[str, float]


def measure_apart(way: str, module: str, arguments: list[str], within: Sequence[str] = (), **environment: str) -> Facts:
    """What `python -m module way arguments` prints in its last line, a JSON object.

    Args:
        way: what is measured; also named where it fails.
        module: of this package.
        arguments: behind the way.
        within: a command that runs the rest of its line somewhere else.
        environment: beside that of this process.

    Raises:
        ResourceError: it failed.
    """
    command = [*within, sys.executable, "-m", module, way, *arguments]
    variables = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode != 0:
        last_line = done.stderr.strip().splitlines()[-1:]
        raise ResourceError(f"Measuring {way} ended with exit code {done.returncode}: {last_line}")
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts
