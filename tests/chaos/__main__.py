"""`make chaos [SEED=n]`: 60 steps at staleness 1 with a SIGKILL about every third step, beside undisturbed runs."""

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.harness import KINDS, Report, Run, inspect, torment

NUM_STEPS, NUM_DRIVER_KILLS, TIMEOUT_S = 60, 2, 3000.0
OVERRIDES = (
    "train.phases=[{name: timestamps, steps: 25, weights: {timestamp: 1},"
    " prompt: 'Find every time {question}. Refer to specific timestamps.'},"
    " {name: free, steps: 35, prompt: 'Find every time {question}.'}]",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--undisturbed", type=int, default=3, help="runs to compare the final mIoU with")
    arguments = parser.parse_args()
    console, place = Console(highlight=False), Path("runs") / time.strftime("chaos-%Y%m%d-%H%M%S")
    place.mkdir(parents=True)
    calm = [_calm(place.absolute() / f"undisturbed-{index}", index, console) for index in range(arguments.undisturbed)]
    console.print(f"chaos, seed {arguments.seed}: {place}/chaos")
    with _start(place.absolute() / "chaos", arguments.seed) as run:
        report = torment(run, NUM_DRIVER_KILLS, arguments.seed, NUM_STEPS, TIMEOUT_S, console.print)
    inspect(run.folder, NUM_STEPS, 1, report)
    _compare(report, calm)
    _print(report, calm, console)
    sys.exit(1 if report.faults else 0)


def _start(folder: Path, seed: int) -> Run:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    museg = str(Path(sys.executable).with_name("museg"))
    return Run(museg, folder, environment, [f"run.seed={seed}", *OVERRIDES])


def _calm(folder: Path, seed: int, console: Console) -> float:
    console.print(f"undisturbed, seed {seed}: {folder}")
    with _start(folder, seed) as run:
        assert run.process.wait() == 0, run.printed()[-2000:]
    report = inspect(folder, NUM_STEPS, 1, Report())
    assert not report.faults and report.miou is not None, report.faults
    console.print(f"  mIoU {report.miou:.3f}")
    return report.miou


def _compare(report: Report, calm: list[float]) -> None:
    """Within the undisturbed runs' spread, widened by itself: three runs show about half of what is usual."""
    if not calm or report.miou is None:
        return
    low, high = min(calm), max(calm)
    margin = high - low + 0.01
    if not low - margin <= report.miou <= high + margin:
        report.faults.append(f"mIoU {report.miou:.3f} is not near {low:.3f} to {high:.3f} of the undisturbed runs")


def _print(report: Report, calm: list[float], console: Console) -> None:
    table = Table("kind", "kills", "slowest recovery, s")
    roles = {"engine": "rollout", "rollout": "rollout", "reward": "reward", "clips": "clips", "learner": "learner"}
    for kind in (*KINDS, "driver"):
        seconds = report.slowest_recovery_s.get(roles.get(kind, ""))
        table.add_row(kind, str(report.kills[kind]), "-" if seconds is None else f"{seconds:.1f}")
    console.print(table)
    after = "-" if report.miou is None else f"{report.miou:.3f}"
    console.print(
        f"mIoU after {NUM_STEPS} steps: {after}; undisturbed: {', '.join(f'{miou:.3f}' for miou in calm) or '-'}"
    )
    for fault in report.faults:
        console.print(f"FAULT  {fault}", style="red", markup=False)
    if not report.faults:
        console.print("Every issue ended once, no token was too old, nothing is half-written, no process is left.")


if __name__ == "__main__":
    main()
