"""A real run whose processes are killed at random, and what must hold all the same.

`make chaos SEED=n` runs 60 steps of the demo at staleness 1 beside undisturbed ones; tests/chaos/test_chaos.py
runs a short one.
"""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import pyarrow.parquet as pq

from museg_ray.append_log import read_rows
from museg_ray.checkpoints.folder import list_checkpoints, verify
from museg_ray.files import PARTIAL
from museg_ray.metrics import names
from tests.whole_ledger import read_ledger

KINDS = {
    "engine": "VLLM::EngineCore",
    "rollout": "ray::RolloutActor",
    "reward": "ray::RewardActor",
    "clips": "ray::PrepareActor",
    "learner": "ray::LearnerActor",
    "weights": "ray::HostActor",
}
"""Kind -> how its processes are called."""
STEPS_PER_KILL = 3
GONE_S = 60.0
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They outlive a raylet that was killed by a minute."""
SETTINGS = (
    "train.max_staleness=1",
    "algo.correction=truncate",
    "rewards.num_actors=2",
    "video.num_actors=2",
    "checkpoint.every_steps=4",
    "fleet.max_restarts=1000",
    "fleet.backoff_s=0.1",
    "run.restart=true",  # a driver may be killed before the first checkpoint
)


@dataclass
class Report:
    """What was done to a run and what became of it."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_recovery_s: dict[str, float] = field(default_factory=dict)
    """By role: from a loss to the next join of that role, as the run's events tell."""
    miou: float | None = None


class Run:
    """One run of the demo in a process of its own, that can be killed and started again. Ended when left."""

    def __init__(self, museg: str, folder: Path, environment: dict[str, str], overrides: Sequence[str]) -> None:
        self.folder = folder
        self._command = [museg, "demo", "--run-dir", str(folder), "--resume", *SETTINGS, *overrides]
        self._environment = environment
        self._log = folder.with_suffix(".log")
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        family = self.family()
        self.process.terminate()
        _, alive = psutil.wait_procs(family, timeout=GONE_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=log,
                cwd=self.folder.parent,
                start_new_session=True,
            )

    def family(self) -> list[psutil.Process]:
        try:
            driver = psutil.Process(self.process.pid)
            return [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def members(self, kind: str) -> list[psutil.Process]:
        """Its processes of a kind."""
        found = []
        for process in self.family():
            try:
                if process.name().startswith(KINDS[kind][:15]) and " ".join(process.cmdline()).startswith(KINDS[kind]):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, kind: str, chance: random.Random) -> bool:
        """SIGKILL one of a kind; False where there is none at this moment."""
        victims = self.members(kind)
        if victims:
            os.kill(chance.choice(victims).pid, 9)
        return bool(victims)

    def kill_driver(self) -> None:
        """And start it again, once nothing of it is left."""
        family = [member for member in self.family() if _name(member) not in RAYS_AGENTS]
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=GONE_S)
        assert not [member for member in alive if member.is_running()], f"left over: {alive}"
        self.process = self._start()

    @property
    def step(self) -> int:
        rows = list(read_rows(self.folder / "metrics.jsonl"))
        return int(rows[-1]["step"]) if rows else 0

    def printed(self) -> str:
        return self._log.read_text(errors="replace")


def torment(
    run: Run, num_driver_kills: int, seed: int, num_steps: int, timeout_s: float, tell: Callable[[str], None]
) -> Report:
    """Kill about every third step until the run ends by itself.

    Raises:
        AssertionError: it ends otherwise, or hangs.
    """
    chance, report, bag = random.Random(seed), Report(), list[str]()
    driver_at = sorted(chance.sample(range(2, num_steps - 1), num_driver_kills))
    deadline_s, next_step = time.monotonic() + timeout_s, 1
    while run.process.poll() is None:
        assert time.monotonic() < deadline_s, f"not done after {timeout_s:g} s: {run.printed()[-3000:]}"
        time.sleep(0.1)
        step = run.step
        if step >= num_steps:
            continue
        if driver_at and step >= driver_at[0]:
            driver_at.pop(0)
            run.kill_driver()
            report.kills["driver"] += 1
            tell(f"step {step}: the driver is killed and started again")
        elif step >= next_step:
            time.sleep(chance.uniform(0.0, 1.0))
            bag = bag or chance.sample(list(KINDS), len(KINDS))  # each kind once before any comes again
            kind = bag[-1]
            if run.kill(kind, chance):
                bag.pop()
                report.kills[kind] += 1
                next_step = step + chance.randint(1, 2 * STEPS_PER_KILL - 1)
                tell(f"step {step}: kills {kind}")
    if run.process.returncode != 0:
        report.faults.append(f"it ended with {run.process.returncode}: {run.printed()[-2000:]}")
    return report


def inspect(folder: Path, num_steps: int, max_staleness: int, report: Report) -> Report:
    """Compare what the run left with what must hold."""
    faults = report.faults
    ledger = read_ledger(folder / "ledger.jsonl")
    faults += [f"issue {row.issue_id} has no end" for row in ledger if row.outcome is None]
    rows = list(read_rows(folder / "metrics.jsonl"))
    if [row["step"] for row in rows] != list(range(1, num_steps + 1)):
        faults.append(f"metrics.jsonl has the steps {[row['step'] for row in rows]}")
    faults += [
        f"step {r['step']} trained tokens that are too old" for r in rows if r[names.ROLLOUT_AGE_MAX] > max_staleness
    ]
    versions = [row[names.WEIGHTS_VERSION] for row in rows]
    if versions != sorted(set(versions)):
        faults.append(f"versions do not grow: {versions}")
    faults += _faults_of_rollouts(folder, {row.issue_id for row in ledger if row.weight_version is not None})
    faults += [f"half-written: {path}" for path in folder.rglob(f"*{PARTIAL}")]
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        verify(checkpoint)
    summary = folder / "summary.json"
    if summary.is_file():
        report.miou = json.loads(summary.read_text())["after"]["miou"]
    else:
        faults.append("no summary.json")
    report.slowest_recovery_s = _recoveries(list(read_rows(folder / "events.jsonl")))
    return report


def _faults_of_rollouts(folder: Path, sampled: set[int]) -> list[str]:
    logged = pq.read_table(
        folder / "rollouts.parquet", columns=["issue_id", "response_index", "spans", "weight_version"]
    )
    rows: list[dict[str, Any]] = logged.to_pylist()
    seen = Counter((row["issue_id"], row["response_index"]) for row in rows)
    faults = [f"response {which} is logged {count} times" for which, count in seen.items() if count > 1]
    if {issue_id for issue_id, _ in seen} != sampled:
        faults.append(f"ledger and rollouts differ: {sorted({i for i, _ in seen} ^ sampled)[:5]}")
    for row in rows:
        spans = [span["version"] for span in row["spans"]]
        if spans != sorted(set(spans)) or any(version < row["weight_version"] for version in spans):
            faults.append(f"issue {row['issue_id']} has spans {row['spans']} under {row['weight_version']}")
    return faults


def _recoveries(events: list[dict[str, Any]]) -> dict[str, float]:
    slowest: dict[str, float] = {}
    lost: dict[str, list[float]] = {}
    for event in events:
        role = event.get("role", "")
        if event["kind"] == "start":  # of a driver that has members of its own
            lost = {}
        elif event["kind"] == "loss":
            lost.setdefault(role, []).append(event["unix_s"])
        elif event["kind"] in ("join", "restart") and lost.get(role):
            slowest[role] = max(slowest.get(role, 0.0), event["unix_s"] - lost[role].pop(0))
    return slowest


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
