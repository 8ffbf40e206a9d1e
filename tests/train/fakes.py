"""Runs with fakes, in a server of processes that die where they are told to.

What a group holds follows from query, seed, weights and version; what the weights become, from the groups, the step, a
moment and a random state. So a run that lost or repeated any of it would show other numbers from there on.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from museg_ray.checkpoints import folder as checkpoints
from museg_ray.config.load import load_config
from museg_ray.config.schema import Config
from museg_ray.errors import LearnerError, MusegError
from museg_ray.train.run import run
from tests.train.fake_parts import fake_start
from tests.train.script import Script


@dataclass
class Fate(Script):
    """Counts what happens in the process, and kills it at one of the moments."""

    kill_at: int = 0
    """0: it lives."""
    fail_at: int = 0
    """The update that raises, while the checkpoint before it is still being written; 0: none."""
    num_moments: int = 0
    names: list[str] = field(default_factory=list)

    async def moment(self, who: str, what: str) -> None:
        await asyncio.sleep(0.001 if what == "generate" else 0)
        while self.fail_at and what == "write" and self.names.count("learner update") < self.fail_at:
            await asyncio.sleep(0.001)
        if what != "ping":  # how many there are depends on the clock
            self.count(f"{who} {what}")
        if self.fail_at and what == "update" and self.names.count("learner update") == self.fail_at:
            raise LearnerError("the loss is not finite")

    def count(self, name: str) -> None:
        self.num_moments += 1
        self.names.append(name)
        if self.num_moments == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


NUM_STEPS, EVERY_STEPS = 12, 3
UNREADABLE = ("train3.mp4", "train6.mp4", "train7.mp4")


def write_data(folder: Path) -> list[str]:
    """Annotations and video files that nobody opens; the overrides of a run on them, over demo.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", 11), ("heldout", 4)):
        rows = []
        for index in range(count):
            (folder / f"{stem}{index}.mp4").touch()
            segments = [[1.0, 3.0], [5.0, 8.5]][: 1 + index % 2]
            row = {"idx": index, "problem": f"event {index}", "solution": segments, "duration": 12.0}
            rows.append(row | {"video": f"{stem}{index}.mp4", "task": "tal" if index % 2 else "tvg"})
        (folder / f"{stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"data.train={folder / 'train.jsonl'}",
        f"data.heldout={folder / 'heldout.jsonl'}",
        "data.synthetic.num_train_videos=0",
        "train.prompts_per_step=2",
        "train.phases=[{name: one, steps: 5, prompt: 'Cite. {question}', weights: {timestamp: 1}},"
        " {name: two, steps: 4, prompt: '{question}', fresh_optimizer: true, fresh_reference: true},"
        " {name: three, steps: 3, prompt: 'Find {question}', fresh_optimizer: true}]",
        "rollout.group_size=4",
        f"checkpoint.every_steps={EVERY_STEPS}",
        "checkpoint.keep_last=2",
        "alarms.window_steps=2",
        "alarms.max_truncated_share=0.05",
        "alarms.min_reward_std=0.7",
        "video.store_dir=frames",
    ]


def run_with_fakes(config: Config, fate: Fate) -> Path:
    """A whole run in this process, which is only for this: a kill may come between two calls of the file system."""
    real_sync, real_remove = checkpoints.sync, checkpoints.remove_files

    def sync(path: Path) -> None:
        fate.count(f"sync {path.name}")
        real_sync(path)

    def remove(path: Path, is_own: Callable[[str], bool]) -> None:
        fate.count(f"remove {path.name}")
        real_remove(path, is_own)

    checkpoints.sync = sync
    checkpoints.remove_files = remove
    return run(config, fake_start(fate, UNREADABLE), write_pages=lambda run_dir: None)


@dataclass(frozen=True)
class Ended:
    """How a process of the server ended."""

    code: int
    """Exit status; negative: the signal."""
    num_moments: int
    """0 of one that was killed."""
    printed: str


class RunServer:
    """Runs of `run` with fakes, each in a process of its own, forked where all is imported."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self._folder, self._overrides = folder, list(overrides)
        repository = Path(__file__).resolve().parents[2]
        environment = os.environ | {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, name: str, *overrides: str, kill_at: int = 0, kill_after_s: float = 0.0, fail_at: int = 0) -> Ended:
        job = {
            "overrides": [*self._overrides, f"run.dir={self._folder}", f"run.name={name}", *overrides],
            "kill_at": kill_at,
            "kill_after_s": kill_after_s,
            "fail_at": fail_at,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _child(job: Mapping[str, Any], out: int) -> None:
    os.dup2(out, 1)
    os.dup2(out, 2)
    fate, code = Fate(job["kill_at"], job["fail_at"]), 0
    config_path = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
    try:
        run_with_fakes(load_config(config_path, job["overrides"]), fate)
    except MusegError as error:
        print(f"{type(error).__name__}: {error}")
        code = 1
    except BaseException as error:
        print(f"bug: {error!r}")
        import traceback

        traceback.print_exc()
        code = 2
    print(f"\nmoments {fate.num_moments}", flush=True)
    os._exit(code)


def serve() -> None:
    """One JSON line in, one process, one JSON line out."""
    for line in sys.stdin:
        job = json.loads(line)
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reads)
            _child(job, writes)
        os.close(writes)
        if job["kill_after_s"]:
            time.sleep(job["kill_after_s"])
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(reads) as file:
            printed, _, moments = file.read().rpartition("\nmoments ")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        moments = moments if code >= 0 else "0"
        print(json.dumps({"code": code, "num_moments": int(moments), "printed": printed}), flush=True)


if __name__ == "__main__":
    serve()
