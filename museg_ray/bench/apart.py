"""Ways to do one thing, each measured in a process of its own, so that its peak memory is its alone.

    python -m museg_ray.bench.apart MODULE:FUNCTION ARGUMENTS

calls the function with a JSON list of arguments and prints the facts that it gives in the last line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from typing import Any

from museg_ray.bench.result import Row, Tell, compared
from museg_ray.errors import ResourceError

Facts = dict[str, float]
Round = dict[str, Facts]
"""Way -> what one measurement of it found; all others are compared with the first way."""


def measure_apart(measure: Callable[..., Facts], *arguments: Any, within: Sequence[str] = (), **more: str) -> Facts:
    """What `measure(*arguments)` gives in a process of its own.

    Args:
        measure: a function of a module.
        arguments: as JSON has them.
        within: a command that runs the rest of its line somewhere else.
        more: environment beside that of this process.

    Raises:
        ResourceError: it failed; names the arguments.
    """
    name = f"{measure.__module__}:{measure.__name__}"
    command = [*within, sys.executable, "-m", __name__, name, json.dumps(arguments)]
    variables = os.environ | {"HF_HUB_OFFLINE": "1"} | more
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode != 0:
        last_line = done.stderr.strip().splitlines()[-1:]
        raise ResourceError(
            f"Measuring {measure.__name__}{arguments} ended with exit code {done.returncode}: {last_line}"
        )
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def measure_rounds(case: str, rounds: int, tell: Tell, measure: Callable[[], Round]) -> list[Round]:
    """In each round every way runs once."""
    measured = []
    for number in range(rounds):
        tell(f"{case}: round {number + 1} of {rounds}")
        measured.append(measure())
    return measured


def ratio(fact: str, way: str, measured: Sequence[Round]) -> float:
    """Of a way's to the first way's: the median of the rounds. Round by round, as on a machine that others use too the
    speed of a core changes from one to the next."""
    base = next(iter(measured[0]))
    return median(each[way][fact] / each[base][fact] for each in measured)


def compare_ways(case: str, facts: Sequence[str], measured: Sequence[Round]) -> list[Row]:
    """A row for each way but the first and each of these facts that both have: medians, and the ratio of both."""
    rows, (base, *ways) = list[Row](), measured[0]
    for way in ways:
        for fact in facts:
            if fact in measured[0][way] and fact in measured[0][base]:
                ours, theirs = (median(each[one][fact] for each in measured) for one in (way, base))
                row = compared(f"{fact}: {way} / {base}", case, ours, theirs, unit="value")
                rows.append(row | {"ratio": ratio(fact, way, measured)})
    return rows


def status_mib(field: str) -> float:
    """Memory of this process: `VmRSS`, or `VmHWM` at its peak (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


if __name__ == "__main__":
    print(json.dumps(resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))))
