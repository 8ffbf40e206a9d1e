"""The rollout engine as a Ray actor."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import ray
from ray.actor import ActorHandle

from museg_ray.config.schema import Config
from museg_ray.rollout.engine import RolloutEngine, Sampling
from museg_ray.rollout.vllm_setup import engine_environment
from museg_ray.types import ByteArray, GroundingQuery, ResponseGroup
from museg_ray.video.loader import ClipHandle, ClipLoader

MAX_GROUPS = 1000
"""Groups that may be inside one actor at once."""


class _Room:
    """Lets groups in while the engine can decode them, and one more: each that waits inside holds its pixels."""

    def __init__(self, max_num_seqs: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._num_seqs = 0
        self._left = asyncio.Condition()

    @asynccontextmanager
    async def take(self, num_seqs: int) -> AsyncIterator[None]:
        async with self._left:
            await self._left.wait_for(lambda: self._num_seqs < self._max_num_seqs)
            self._num_seqs += num_seqs
        try:
            yield
        finally:
            async with self._left:
                self._num_seqs -= num_seqs
                self._left.notify_all()


class RolloutActor:
    """One engine. Groups and weight updates share an event loop; the control calls have their own, so that they are
    answered while an engine starts, which blocks the first."""

    def __init__(self, model_dir: Path, config: Config) -> None:
        self._model_dir, self._config = model_dir, config
        self._engine: RolloutEngine | None = None
        self._room = _Room(config.rollout.max_num_seqs)

    async def start(self) -> None:
        """Start the engine; apart from `__init__`, so that being placed and starting can be told from each other."""
        self._clips = ClipLoader(self._config.video)
        self._engine = await RolloutEngine.start(self._model_dir, self._config.model, self._config.rollout)

    async def generate(
        self, query: GroundingQuery, prompt_ids: Sequence[int], handle: ClipHandle, sampling: Sampling
    ) -> ResponseGroup:
        engine = self._started
        async with self._room.take(sampling.group_size):
            clip = await asyncio.to_thread(self._clips.load, handle)  # may come from another machine
            return await engine.generate(query, prompt_ids, clip, sampling)

    async def update_weights(self, version: int, blob: ByteArray) -> int:
        return await self._started.update_weights(version, blob)

    @ray.method(concurrency_group="control")
    async def ping(self) -> None:
        """Returns once the actor has a process."""

    @ray.method(concurrency_group="control")
    async def close(self) -> None:
        """End the engine's process, if there is one."""
        if self._engine is not None:
            self._engine.close()

    @property
    def _started(self) -> RolloutEngine:
        assert self._engine is not None, "start() comes first"
        return self._engine


def start_actor(model_dir: Path, config: Config) -> ActorHandle:
    """A new rollout actor in its own process environment; its `start` is still to be called."""
    rollout = config.rollout
    options = {
        "num_cpus": rollout.num_cpus,
        "num_gpus": rollout.num_gpus,
        "max_concurrency": MAX_GROUPS,
        "runtime_env": {"env_vars": engine_environment(rollout)},
    }
    remote_class = ray.remote(concurrency_groups={"control": 1})(RolloutActor)
    return remote_class.options(**options).remote(model_dir, config)
