"""`make recovery`: while groups are sampled, an engine's process, its actor and its whole node are killed, and a node
is told that it will be taken away: how long until that is noticed, until others have its issues, until it is replaced.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

from museg_ray.bench.result import BenchResult, Row, Target, at_most, compared
from museg_ray.config.schema import Config, FleetConfig, ModelConfig, RolloutConfig, VideoConfig
from museg_ray.events import EventKind
from museg_ray.fleet.local_ray import local_ray
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, load_policy, load_tokenizer
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import RolloutPool
from museg_ray.terminal.console import SafeConsole
from museg_ray.types import Clip, GroundingQuery, Group, Issue
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.video.store import FrameStore
from museg_ray.weights.shared import SharedWeights
from tests.weights.weight_files import TensorSource

ENGINE, ACTOR, RAYLET, DRAINED = "killed: engine", "killed: actor", "killed: raylet", "drained: node"
NUM_GROUPS = 12
SAMPLING = Sampling(group_size=8, temperature=1.0, max_completion_tokens=192)
NOTICED_TARGET_S, REQUEUED_TARGET_S, REPLACED_TARGET_S = 5.0, 1.0, 5.0
WAIT_S = 300.0

Node = subprocess.Popen[bytes]


class Events(list[tuple[float, EventKind, dict[str, Any]]]):
    """Seconds on the monotonic clock, kind and fields of what has happened."""

    def note(self, kind: EventKind, text: str, **fields: object) -> None:
        self.append((time.monotonic(), kind, fields))

    def of(self, *kinds: EventKind) -> list[tuple[float, dict[str, Any]]]:
        return [(when_s, fields) for when_s, kind, fields in self if kind in kinds]


def main() -> None:
    """In the same cluster one after the other: a node's replacement needs another node first."""
    events, found, console = Events(), list[tuple[list[Row], list[Target]]](), SafeConsole(width=160)
    with (
        tempfile.TemporaryDirectory(prefix="museg-recovery-") as folder,
        nodes() as (head, second),
        ExitStack() as more,
    ):

        async def measure_each() -> None:
            pool, channel, clip = await _engines(Path(folder), events)
            node = second
            try:
                for victim in (ENGINE, ACTOR, RAYLET, DRAINED):
                    console.print(victim)
                    free = more.enter_context(joined(head)) if victim in (RAYLET, DRAINED) else node
                    found.append(await measure(victim, _pid(victim, node), pool, clip, events))
                    node = free
            finally:
                await pool.close()
                await channel.close()

        asyncio.run(measure_each())
    rows, targets = ([each for part in parts for each in part] for parts in zip(*found, strict=True))
    BenchResult("recovery", tuple(rows), tuple(targets)).print(console)


async def measure(
    victim: str, pid: int, pool: RolloutPool, clip: ClipHandle, events: Events
) -> tuple[list[Row], list[Target]]:
    """Seconds from the signal: until the loss is noticed (or the draining, which loses nothing), from then until the
    last of its issues goes to another actor, and until the replacement serves at the newest version."""
    events.clear()
    groups = asyncio.create_task(_sample(pool, clip, NUM_GROUPS))
    await asyncio.sleep(1.0)
    sent_s = time.monotonic()
    os.kill(pid, signal.SIGTERM if victim == DRAINED else signal.SIGKILL)
    sampled = await groups
    while not (joins := events.of(EventKind.JOIN)):
        assert time.monotonic() < sent_s + WAIT_S, f"no replacement serves: {victim}"
        await asyncio.sleep(0.1)
    noticed_s = events.of(EventKind.DRAIN if victim == DRAINED else EventKind.LOSS)[0][0] - sent_s
    requeues = events.of(EventKind.REQUEUE)
    requeued_s = max((when_s - sent_s - noticed_s for when_s, _ in requeues), default=0.0)
    serves_s, start_s = joins[-1][0] - sent_s, joins[-1][1]["start_s"]
    twice = [sampled[fields["issue_id"]] for _, fields in requeues]
    num_tokens = sum(len(response.token_ids) for group in twice for response in group.responses)
    case = f"{victim}, {len(twice)} groups begun twice, <= {num_tokens:,} tokens"
    return [
        compared("noticed / target", case, 1e3 * noticed_s, 1e3 * NOTICED_TARGET_S),
        compared("requeued / target", case, 1e3 * requeued_s, 1e3 * REQUEUED_TARGET_S),
        compared("replacement serves / its start", case, 1e3 * serves_s, 1e3 * start_s),
    ], [
        at_most(f"{victim}: noticed, s", noticed_s, NOTICED_TARGET_S),
        at_most(f"{victim}: requeued after it, s", requeued_s, REQUEUED_TARGET_S),
        at_most(f"{victim}: replacement, s beyond its start", serves_s - start_s, REPLACED_TARGET_S),
    ]


async def _engines(folder: Path, events: Events) -> tuple[RolloutPool, SharedWeights, ClipHandle]:
    """One on each node, with weights of version 1, and a clip to ask about."""
    rollout = RolloutConfig(
        num_actors=2, num_cpus=1, num_threads=1, max_num_seqs=32, kv_cache_gib=0.125, enforce_eager=True
    )
    config = Config(
        model=ModelConfig(dtype="float32", max_tokens=512),
        rollout=rollout,
        fleet=FleetConfig(
            restart_window_s=1.0
        ),  # each loss is the first: later ones of a window wait longer and longer
        video=VideoConfig(store_dir=str(folder)),
    )
    pool, clip = RolloutPool(config, PACKAGED_MODEL_DIR, events.note), _stored_clip(folder)
    policy = dict(load_policy(PACKAGED_MODEL_DIR, dtype=torch.float32).named_parameters())
    channel = SharedWeights(config, TensorSource(policy, ray.get_runtime_context().get_node_id()))
    await pool.ready()
    await pool.publish(1, await channel.publish(1, pool.nodes))
    await _sample(pool, clip, 1)
    return pool, channel, clip


def _stored_clip(folder: Path) -> ClipHandle:
    frames = np.random.default_rng(0).integers(0, 256, size=(24, 56, 56, 3), dtype=np.uint8)
    times_s = np.linspace(0.0, 11.5, 24, dtype=np.float32)
    clip = Clip("recovery", "recovery.mp4", frames, times_s, duration_s=12.0)
    FrameStore(folder, limit_gib=1).put(clip)
    prepared = PreparedClip(clip.key, clip.video, clip.frames.shape, clip.duration_s, was_decoded=True)
    return ClipHandle(prepared, origin=None)


async def _sample(pool: RolloutPool, clip: ClipHandle, count: int) -> Sequence[Group]:
    query = GroundingQuery("recovery/0", "recovery.mp4", "it happens", ((1.0, 2.0),))
    prompt_ids = chat_prompt_ids(load_tokenizer(PACKAGED_MODEL_DIR), "Find every time it happens.")
    issues = [Issue(number, query, "recovery", seed=number) for number in range(count)]
    return await asyncio.gather(*(pool.sample(issue, prompt_ids, clip, SAMPLING) for issue in issues))


@contextmanager
def nodes() -> Iterator[tuple[str, Node]]:
    """A Ray of our own: its address, and the process of its second node; one CPU on each."""
    with local_ray(num_cpus=1, is_alone=False):
        address: str = ray.get_runtime_context().gcs_address
        with joined(address) as second:
            yield address, second


@contextmanager
def joined(address: str) -> Iterator[Node]:
    """One more node, with one CPU."""
    num_nodes = len(ray.nodes())
    ports = (f"--{name}-port=0" for name in ("node-manager", "object-manager", "min-worker", "max-worker"))
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--address={address}", "--block", "--num-cpus=1"]
    node = subprocess.Popen(
        [*command, "--disable-usage-stats", *ports], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + 60
        while len(ray.nodes()) == num_nodes:
            assert time.monotonic() < deadline_s and node.poll() is None, "the node did not start; see Ray's log folder"
            time.sleep(0.2)
        yield node
    finally:
        node.terminate()
        node.wait()


def _pid(victim: str, node: Node) -> int:
    """Of an engine or its actor on the first node, of the other node's raylet, or of that node itself."""
    if victim == DRAINED:
        return node.pid
    of_node = {each.pid: each.name() for each in psutil.Process(node.pid).children(recursive=True)}
    if victim == RAYLET:
        return next(pid for pid, name in of_node.items() if name == "raylet")
    family = psutil.Process().children(recursive=True)
    engine = next(each for each in family if "EngineCore" in each.name() and each.pid not in of_node)
    return engine.pid if victim == ENGINE else engine.ppid()


if __name__ == "__main__":
    main()
