"""Recovery on the real stack, for `museg bench pipeline --real`: while groups are sampled, an engine's process, its
actor and its whole node are killed, and a node is told that it will be taken away."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from museg_ray.bench.result import Row, Target, at_most, compared
from museg_ray.config.schema import Config, FleetConfig, ModelConfig, RolloutConfig, VideoConfig
from museg_ray.errors import ResourceError
from museg_ray.events import EventKind
from museg_ray.fleet.local_ray import local_ray
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, load_policy, load_tokenizer
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import RolloutPool
from museg_ray.types import Clip, GroundingQuery, Group, Issue
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.video.store import FrameStore
from museg_ray.weights.shared import SharedWeights
from museg_ray.weights.tensors import TensorSource

KILLED = ("killed: engine", "killed: actor", "killed: raylet")
DRAINED = "drained: node"
NUM_GROUPS = 12
SAMPLING = Sampling(group_size=8, temperature=1.0, max_completion_tokens=192)
NOTICED_TARGET_S, REQUEUED_TARGET_S, REPLACED_TARGET_S = 5.0, 1.0, 5.0
WAIT_S = 300.0

Happening = tuple[float, EventKind, dict[str, Any]]
"""Seconds on the monotonic clock, kind, fields."""


def measure_recovery(tell: Callable[[str], None]) -> tuple[list[Row], list[Target]]:
    """Seconds from SIGKILL of an engine process, of its actor and of a raylet until the loss is noticed, until its
    issues go to another actor, and until the replacement serves at the newest version; and from SIGTERM of a node,
    which loses nothing.

    Args:
        tell: is told what is being done.

    Raises:
        ResourceError: Ray or the second node does not start, or a replacement never serves.
    """
    deaths = list[Death]()
    for victims in (KILLED, (DRAINED,)):
        tell("starting two nodes and two engines")
        with _two_nodes() as node:
            deaths += asyncio.run(_measure_each(victims, node, tell))
    rows = [row for death in deaths for row in death.rows()]
    targets = [
        at_most("slowest notice of a death, s", max(death.noticed_s for death in deaths), NOTICED_TARGET_S),
        at_most("slowest requeue after it, s", max(death.requeued_s for death in deaths), REQUEUED_TARGET_S),
        at_most("replacement, s beyond its start", max(death.beyond_start_s for death in deaths), REPLACED_TARGET_S),
    ]
    return rows, targets


@dataclass(frozen=True, slots=True)
class Death:
    """Of one victim, in seconds since the signal, and what came of it."""

    victim: str
    noticed_s: float
    requeued_s: float
    """Since it was noticed, until the last of its issues was given to another."""
    num_twice: int
    """Groups that were begun twice."""
    num_tokens_twice: int
    """At most so many tokens of theirs were sampled twice: all that they have in the end."""
    serves_s: float
    start_s: float
    """That the replacement took by itself."""

    @property
    def beyond_start_s(self) -> float:
        return self.serves_s - self.start_s

    def rows(self) -> list[Row]:
        case = f"{self.victim}, {self.num_twice} groups begun twice, <= {self.num_tokens_twice:,} tokens"
        return [
            compared("noticed / target", case, 1e3 * self.noticed_s, 1e3 * NOTICED_TARGET_S),
            compared("requeued / target", case, 1e3 * self.requeued_s, 1e3 * REQUEUED_TARGET_S),
            compared("replacement serves / its start", case, 1e3 * self.serves_s, 1e3 * self.start_s),
        ]


@asynccontextmanager
async def _engines(happened: list[Happening]) -> AsyncIterator[tuple[RolloutPool, ClipHandle]]:
    """One on each node, with weights of version 1, and a clip to ask about."""
    import torch

    def note(kind: EventKind, text: str, **fields: object) -> None:
        happened.append((time.monotonic(), kind, fields))

    spare = ray.remote(_Spare).options(num_cpus=1).remote()  # so that the second engine goes to the second node
    await spare.ready.remote()
    with tempfile.TemporaryDirectory(prefix="museg-bench-") as folder:
        config = _config(Path(folder))
        pool = RolloutPool(config, PACKAGED_MODEL_DIR, note)
        clip = _stored_clip(Path(folder))
        policy = dict(load_policy(PACKAGED_MODEL_DIR, dtype=torch.float32).named_parameters())
        channel = SharedWeights(config, TensorSource(policy, ray.get_runtime_context().get_node_id()))
        try:
            await pool.ready()
            ray.kill(spare)
            await pool.publish(1, await channel.publish(1, pool.nodes))
            await _sample(pool, clip, 1)
            yield pool, clip
        finally:
            await pool.close()
            await channel.close()


async def _measure_each(
    victims: Sequence[str], node: subprocess.Popen[bytes], tell: Callable[[str], None]
) -> list[Death]:
    deaths, happened = list[Death](), list[Happening]()
    async with _engines(happened) as (pool, clip):
        for victim in victims:
            tell(victim)
            happened.clear()
            deaths.append(await _measure(victim, node, pool, clip, happened))
    return deaths


async def _measure(
    victim: str, node: subprocess.Popen[bytes], pool: RolloutPool, clip: ClipHandle, happened: list[Happening]
) -> Death:
    pid = _pid(victim, node)
    groups = asyncio.create_task(_sample(pool, clip, NUM_GROUPS))
    await asyncio.sleep(1.0)
    sent_s = time.monotonic()
    os.kill(pid, signal.SIGTERM if victim == DRAINED else signal.SIGKILL)
    sampled = await groups
    while not (joins := _of(happened, EventKind.JOIN)):
        if time.monotonic() > sent_s + WAIT_S:
            raise ResourceError(f"After this no replacement served within {WAIT_S:g} s: {victim}.")
        await asyncio.sleep(0.1)
    noticed_s = _of(happened, EventKind.DRAIN if victim == DRAINED else EventKind.LOSS)[0][0] - sent_s
    requeues = _of(happened, EventKind.REQUEUE)
    requeued_s = max((when - sent_s - noticed_s for when, _, _ in requeues), default=0.0)
    serves_s, start_s = joins[-1][0] - sent_s, joins[-1][2]["start_s"]
    twice = [sampled[fields["issue_id"]] for _, _, fields in requeues]
    num_tokens_twice = sum(len(response.token_ids) for group in twice for response in group.responses)
    return Death(victim, noticed_s, requeued_s, len(twice), num_tokens_twice, serves_s, start_s)


async def _sample(pool: RolloutPool, clip: ClipHandle, count: int) -> list[Group]:
    query = GroundingQuery("bench/0", "bench.mp4", "it happens", ((1.0, 2.0),))
    prompt_ids = chat_prompt_ids(load_tokenizer(PACKAGED_MODEL_DIR), "Find every time it happens.")
    issues = [Issue(number, query, "bench", seed=number) for number in range(count)]
    return await asyncio.gather(*(pool.sample(issue, prompt_ids, clip, SAMPLING) for issue in issues))


def _of(happened: Sequence[Happening], kind: EventKind) -> list[Happening]:
    return [each for each in happened if each[1] is kind]


def _config(folder: Path) -> Config:
    rollout = RolloutConfig(
        num_actors=2, num_cpus=1, num_threads=1, max_num_seqs=32, kv_cache_gib=0.125, enforce_eager=True
    )
    model = ModelConfig(dtype="float32", max_tokens=512)
    fleet = FleetConfig(restart_window_s=1.0)  # each loss is the first: later ones of a window wait longer and longer
    return Config(model=model, rollout=rollout, fleet=fleet, video=VideoConfig(store_dir=str(folder)))


def _stored_clip(folder: Path) -> ClipHandle:
    frames = np.random.default_rng(0).integers(0, 256, size=(24, 56, 56, 3), dtype=np.uint8)
    times_s = np.linspace(0.0, 11.5, 24, dtype=np.float32)
    clip = Clip("bench", "bench.mp4", frames, times_s, duration_s=12.0)
    FrameStore(folder, limit_gib=1).put(clip)
    prepared = PreparedClip(clip.key, clip.video, clip.frames.shape, clip.duration_s, was_decoded=True)
    return ClipHandle(prepared, origin=None)


class _Spare:
    """Holds a CPU."""

    def ready(self) -> None:
        pass


@contextmanager
def _two_nodes() -> Iterator[subprocess.Popen[bytes]]:
    """A Ray of our own with a second node, whose process is given; two CPUs on the first, one on the second."""
    with local_ray(num_cpus=2, is_alone=False):
        ray_command = str(Path(sys.executable).with_name("ray"))
        address = ray.get_runtime_context().gcs_address
        ports = ("node-manager", "object-manager", "min-worker", "max-worker")
        command = [ray_command, "start", f"--address={address}", "--block", "--num-cpus=1", "--disable-usage-stats"]
        command += [f"--{name}-port=0" for name in ports]
        node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline_s = time.monotonic() + 60
            while ray.cluster_resources().get("CPU", 0) < 3:
                if time.monotonic() > deadline_s or node.poll() is not None:
                    raise ResourceError("The second Ray node did not start; see Ray's log folder.")
                time.sleep(0.2)
            yield node
        finally:
            node.terminate()
            node.wait()


def _pid(victim: str, node: subprocess.Popen[bytes]) -> int:
    """Of a process on the first node, of the second node's raylet, or of that node itself."""
    of_second = {each.pid: each.name() for each in psutil.Process(node.pid).children(recursive=True)}
    if victim == "killed: raylet":
        return next(pid for pid, name in of_second.items() if name == "raylet")
    if victim == DRAINED:
        return node.pid
    family = psutil.Process().children(recursive=True)
    engine = next(each for each in family if "EngineCore" in each.name() and each.pid not in of_second)
    return engine.pid if victim == "killed: engine" else engine.ppid()
