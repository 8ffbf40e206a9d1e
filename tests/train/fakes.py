"""Stand-ins for every actor of a run, whose numbers depend on all that a checkpoint must keep; and a server of
processes that run with them, and die where they are told to.

What a group holds follows from query, seed, weights and version; what the weights become, from the groups, the step, a
moment and a random state. So a run that lost or repeated any of it would show other numbers from there on.
"""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from museg_ray.config.load import load_config
from museg_ray.config.schema import Config, PhaseConfig, RewardConfig, RewardWeights
from museg_ray.errors import LearnerError, MusegError, VideoError, VideoFault
from museg_ray.metrics import names
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.rewards.recipe import Recipe
from museg_ray.rollout.engine import Sampling
from museg_ray.train import checkpoint
from museg_ray.train import run as run_module
from museg_ray.train.parts import Parts
from museg_ray.types import GroundingQuery, Response, ResponseGroup, RewardParts, ScoredGroup, Unscored


@dataclass
class Fate:
    """Counts what happens in the process, and kills it at one of the moments."""

    kill_at: int = 0
    """0: it lives."""
    num_moments: int = 0
    names: list[str] = field(default_factory=list)

    def moment(self, name: str) -> None:
        self.num_moments += 1
        self.names.append(name)
        if self.num_moments == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def number(*what: object) -> int:
    """A number that follows from all of `what`, in every process the same."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=6).digest())


class FakeLearner:
    """Obeys the contract of `LearnerHandle`; its state is a few numbers."""

    def __init__(self, checkpoint_dir: Path | None = None, fate: Fate | None = None, gap: float = 1e-7) -> None:
        self.weight = self.moment = self.reference = 0.0
        self.random = np.random.default_rng(0)
        self.gap = gap
        self.fate = fate or Fate()
        self.fails_to_write = False
        self.num_scored = 0
        self._writing: asyncio.Task[None] | None = None
        if checkpoint_dir is not None:
            state = json.loads((checkpoint_dir / "shard-00000-of-00001.safetensors").read_text())
            self.weight, self.moment, self.reference = state["weight"], state["moment"], state["reference"]
            self.random.bit_generator.state = state["random"]

    async def ready(self) -> None:
        pass

    async def update(self, groups: Sequence[ScoredGroup], clips: Mapping[str, Any], step: int) -> dict[str, float]:
        self.fate.moment("update")
        assert clips.keys() == {scored.group.clip_key for scored in groups}
        signal_ = sum(float(scored.advantages @ _lengths(scored)) for scored in groups)
        self.moment = 0.9 * self.moment + signal_
        self.weight += (0.01 * self.moment + 0.1 * self.random.random()) / step
        return {
            names.LEARNER_LOSS: self.weight,
            names.LEARNER_KL: abs(self.weight - self.reference),
            names.PARITY_GAP_MEAN: 1e-7 * abs(self.weight),
            names.PARITY_GAP_MAX: 1e-6 * abs(self.weight),
        }

    async def score(self, groups: Sequence[ScoredGroup], clips: Mapping[str, Any]) -> dict[str, float]:
        self.fate.moment("score")
        self.num_scored += len(groups)
        assert clips.keys() == {scored.group.clip_key for scored in groups}
        return {names.PARITY_GAP_MEAN: self.gap, names.PARITY_GAP_MAX: 10 * self.gap}

    async def export_weights(self) -> float:
        self.fate.moment("export_weights")
        return self.weight

    async def start_phase(self, phase: PhaseConfig) -> None:
        self.fate.moment("start_phase")
        if phase.fresh_optimizer:
            self.moment = 0.0
        if phase.fresh_reference:
            self.reference = self.weight

    async def begin_checkpoint(self, folder: Path) -> None:
        self.fate.moment("begin_checkpoint")
        assert folder.is_dir()
        assert self._writing is None, "one at a time"
        state = {"weight": self.weight, "moment": self.moment, "reference": self.reference}
        copy = state | {"random": dict(self.random.bit_generator.state)}
        self._writing = asyncio.create_task(self._write(folder, json.dumps(copy)))

    async def finish_checkpoint(self) -> None:
        assert self._writing is not None
        try:
            await self._writing
        finally:
            self._writing = None

    async def export_model(self, out_dir: Path) -> None:
        self.fate.moment("export_model")
        out_dir.mkdir()
        (out_dir / "weight").write_text(repr(self.weight))

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()

    async def _write(self, folder: Path, content: str) -> None:
        if self.fails_to_write:
            raise LearnerError("rank 0 could not write: No space left on device")
        with (folder / "shard-00000-of-00001.safetensors").open("w") as file:
            for start in range(0, len(content), 100):
                file.write(content[start : start + 100])
                file.flush()
                await asyncio.sleep(0.001)
                self.fate.moment("writing")
        (folder / "rng-00000.pt").write_text("in the shard")
        (folder / "learner.json").write_text(json.dumps({"format": 1, "num_shards": 1}))


def _lengths(scored: ScoredGroup) -> np.ndarray:  # [G]
    return np.array([len(response.text) for response in scored.group.responses], dtype=np.float32)


class FakeRollouts:
    """All engines as one: holds the weights that were pushed last, at first those of the model folder."""

    def __init__(self, fate: Fate | None = None) -> None:
        self.fate = fate or Fate()
        self.weight, self.version = 0.0, 0
        self.num_waiting = 0
        self.prompts: list[list[int]] = []

    async def ready(self) -> None:
        pass

    async def generate(
        self, query: GroundingQuery, prompt_ids: Sequence[int], clip: str, sampling: Sampling
    ) -> ResponseGroup:
        self.fate.moment("generate")
        self.prompts.append(list(prompt_ids))
        self.num_waiting += 1
        await asyncio.sleep(0.001)
        self.num_waiting -= 1
        seeds = [
            number(query.query_id, query.video, self.weight, self.version, sampling.seed, index)
            for index in range(sampling.group_size)
        ]
        return ResponseGroup(
            query=query,
            clip_key=clip,
            clip_duration_s=12.0,
            prompt_ids=tuple(prompt_ids),
            responses=tuple(_response(seed) for seed in seeds),
            weight_version=self.version,
        )

    async def push_weights(self, version: int, blob: float) -> None:
        self.fate.moment("push_weights")
        assert version > self.version
        assert not self.num_waiting, "no group may be running"
        self.weight, self.version = blob, version

    async def close(self) -> None:
        pass


def _response(seed: int) -> Response:
    start_s = seed % 90 / 10
    answer = f"{start_s}-{start_s + 2.5}" if seed % 5 else "nothing"
    text = f"<think>{'so ' * (seed % 7)}</think><answer>{answer}</answer>"
    return Response((1,) * (1 + seed % 9), np.zeros(1 + seed % 9, np.float32), text, finished=seed % 11 > 0)


class FakeRewards:
    """The real rewards in this process; a few responses cannot be scored."""

    def __init__(self) -> None:
        self.num_waiting = 0

    async def ready(self) -> None:
        pass

    async def score(self, group: ResponseGroup, weights: RewardWeights) -> tuple[RewardParts | Unscored, ...]:
        recipe = Recipe(RewardConfig())
        return tuple(
            Unscored(response.text, ("died", "died again"))
            if number(response.text, group.query.query_id) % 13 == 0
            else recipe.score(response.text, group.query, weights)
            for response in group.responses
        )

    def close(self) -> None:
        pass


class FakeClips:
    """Names in place of handles."""

    def __init__(self, unreadable: Iterable[str] = ()) -> None:
        self.unreadable = set(unreadable)
        self.num_decoded = 0

    async def ready(self) -> None:
        pass

    def prefetch(self, videos: Iterable[str]) -> None:
        pass

    async def get(self, video: str) -> str:
        await asyncio.sleep(0)
        if Path(video).name in self.unreadable:
            raise VideoError(f"{video} is cut off", VideoFault.CUT_OFF)
        return video

    def close(self) -> None:
        pass


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


def fake_parts(fate: Fate, checkpoint_dir: Path | None = None) -> Parts:
    return Parts(
        tokenizer=load_tokenizer(run_module.resolve_model_path("museg-tiny")),
        clips=FakeClips(UNREADABLE),  # type: ignore[arg-type]
        rollouts=FakeRollouts(fate),  # type: ignore[arg-type]
        rewards=FakeRewards(),  # type: ignore[arg-type]
        learner=FakeLearner(checkpoint_dir, fate),  # type: ignore[arg-type]
    )


def run_with_fakes(config: Config, fate: Fate) -> Path:
    """A whole run in this process, which is only for this: what is put in place of the real parts stays there."""

    async def start(config: Config, model_dir: Path, checkpoint_dir: Path | None = None) -> Parts:
        return fake_parts(fate, checkpoint_dir)

    Parts.start = start  # type: ignore[method-assign, assignment]
    run_module.ray_session = lambda config: nullcontext()  # type: ignore[assignment, attr-defined]
    run_module.write_report = lambda run_dir: None  # type: ignore[assignment, attr-defined]
    real_sync, real_rmtree = checkpoint.sync, checkpoint.shutil.rmtree

    def sync(path: Path) -> None:
        fate.moment(f"sync {path.name}")
        real_sync(path)

    def rmtree(path: Path, **options: Any) -> None:
        fate.moment(f"rmtree {path.name}")
        real_rmtree(path, **options)

    checkpoint.sync = sync
    checkpoint.shutil.rmtree = rmtree  # type: ignore[assignment]
    return run_module.run(config)


@dataclass(frozen=True)
class Ended:
    """How a process of the server ended."""

    code: int
    """Exit status; negative: the signal."""
    num_moments: int
    """0 of one that was killed."""
    printed: str


class RunServer:
    """Runs of `museg_ray.train.run.run` with fakes, each in a process of its own, forked where all is imported."""

    def __init__(self, folder: Path, overrides: Sequence[str]) -> None:
        self._folder, self._overrides = folder, list(overrides)
        repository = Path(__file__).resolve().parents[2]
        environment = os.environ | {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, name: str, *overrides: str, kill_at: int = 0, kill_after_s: float = 0.0) -> Ended:
        job = {
            "overrides": [*self._overrides, f"run.dir={self._folder}", f"run.name={name}", *overrides],
            "kill_at": kill_at,
            "kill_after_s": kill_after_s,
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
    fate, code = Fate(job["kill_at"]), 0
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
