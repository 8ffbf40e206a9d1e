"""`make soak`: 1,000 small steps of the demo, and whether any part of it grows: memory, files, threads, processes."""

import os
import re
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

from tests.chaos.harness import KINDS, Run

NUM_STEPS, EVERY_STEPS = 1000, 5
"""Measured is the second half: the C heap of an engine settles only after some 500 steps, when it has seen clips,
questions and groups of all sizes. Two engines had, in MiB, every hundred steps from the first: 1311, 1470, 1503, 1504,
1504, 1514, 1522, 1515, 1519, 1527, 1525."""
MIB = 1024**2
OVERRIDES = (
    f"train.phases=[{{name: only, steps: {NUM_STEPS}, prompt: 'Find every time {{question}}.'}}]",
    "train.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=48",
    "rollout.kv_cache_gib=0.125",  # 512 blocks of 128 tokens: each has been used within a hundred steps
    "evaluation.num_queries=4",
    "checkpoint.every_steps=50",
)
DRIVER, RAY, READER, MACHINE = "driver", "ray", "reader", "machine"
LIMITS = {"memory": 4.0, "files": 1.0, "threads": 1.0, "processes": 0.25, "shm": 4.0, "tmp": 0.25}
"""Growth per hundred steps in the second half of the run that a part may show: MiB, or a count."""

Sample = dict[tuple[str, str], float]
"""(part, measure) -> value."""


def kind_of(process: psutil.Process, driver_pid: int) -> str:
    """Which part of the run a process is."""
    if process.pid == driver_pid:
        return DRIVER
    name = " ".join(process.cmdline())
    for kind, beginning in KINDS.items():
        if name.startswith(beginning):
            return kind
    return READER if "multiprocessing" in name else RAY


def memory_mib(process: psutil.Process) -> float:
    """Anonymous memory. USS counts a library's pages too, from the moment that no other program on the machine has it
    open: one engine seemed to grow by 19 MiB while its anonymous memory stayed."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return sum(int(kib) for kib in re.findall(r"RssAnon:\s+(\d+) kB", status)) / 1024


def look(run: Run) -> Sample:
    """What every part has at this moment."""
    sample, tmp_dirs = defaultdict[tuple[str, str], float](float), set[str]()
    for process in run.family():
        try:
            kind = kind_of(process, run.process.pid)
            sample[kind, "memory"] += memory_mib(process)
            sample[kind, "files"] += process.num_fds()
            sample[kind, "threads"] += process.num_threads()
            sample[kind, "processes"] += 1
            tmp_dirs.add(process.environ().get("TMPDIR", ""))
        except (psutil.Error, OSError):  # it has just ended
            continue
    sample[MACHINE, "shm"] = shutil.disk_usage("/dev/shm").used / MIB
    sample[MACHINE, "tmp"] = sum(len(os.listdir(folder)) for folder in tmp_dirs if folder)
    return sample


def slopes(steps: list[int], samples: list[Sample]) -> dict[tuple[str, str], float]:
    """Growth per hundred steps over the second half, by least squares."""
    keys = sorted({key for sample in samples for key in sample})
    late = [index for index, step in enumerate(steps) if step >= NUM_STEPS // 2]
    at = [steps[index] for index in late]
    return {key: 100.0 * float(np.polyfit(at, [samples[index][key] for index in late], 1)[0]) for key in keys}


def watch(run: Run, console: Console) -> tuple[list[int], list[Sample]]:
    """Steps, and what every part had at each, until the run ends."""
    steps, samples = list[int](), list[Sample]()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("steps", total=NUM_STEPS)
        while run.process.poll() is None:
            time.sleep(0.5)
            step = run.step
            progress.update(task, completed=step)
            if step >= (steps[-1] + EVERY_STEPS if steps else 1) and step < NUM_STEPS:
                steps.append(step)
                samples.append(look(run))
    assert run.process.returncode == 0, run.printed()[-2000:]
    return steps, samples


def main() -> None:
    console, place = Console(highlight=False), Path("runs").absolute() / time.strftime("soak-%Y%m%d-%H%M%S")
    place.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    console.print(f"{NUM_STEPS} steps in {place}/run")
    with Run(str(Path(sys.executable).with_name("museg")), place / "run", environment, OVERRIDES) as run:
        steps, samples = watch(run, console)
    grown = slopes(steps, samples)
    too_much = {key for key, slope in grown.items() if slope > LIMITS[key[1]]}
    show(console, steps, samples, grown, too_much)
    sys.exit(1 if too_much else 0)


def show(
    console: Console,
    steps: list[int],
    samples: list[Sample],
    grown: dict[tuple[str, str], float],
    too_much: set[tuple[str, str]],
) -> None:
    """First, middle and last values, and the slopes."""
    middle = next(index for index, step in enumerate(steps) if step >= NUM_STEPS // 2)
    headings = [f"step {steps[index]}" for index in (0, middle, -1)]
    table = Table("part", "measure", *headings, "per 100 steps", "limit", title="soak")
    for key, slope in grown.items():
        values = [f"{samples[index][key]:.1f}" for index in (0, middle, -1)]
        style = "bold red" if key in too_much else ""
        table.add_row(*key, *values, f"{slope:+.2f}", f"{LIMITS[key[1]]:g}", style=style)
    console.print(table)


if __name__ == "__main__":
    main()
