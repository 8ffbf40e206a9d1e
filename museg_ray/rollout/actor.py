"""The rollout engine as a Ray actor, and the crew's hold on one."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray

from museg_ray.config.schema import Config
from museg_ray.errors import RolloutError, WeightSyncError
from museg_ray.fleet.deadlines import Deadline, within
from museg_ray.fleet.errors import MemberLost, result_of
from museg_ray.fleet.gpu_driver import check_gpu_driver
from museg_ray.fleet.places import Place
from museg_ray.fleet.worker import ActorWorker, leaving_nodes
from museg_ray.rollout.engine import RolloutEngine, Sampling
from museg_ray.rollout.vllm_setup import engine_environment
from museg_ray.types import Group, Issue
from museg_ray.video.loader import ClipHandle, ClipLoader
from museg_ray.weights.channel import Confirmed, Weights

MAX_CALLS = 10_000
"""Inside one actor at once; the crew lets in far fewer."""


class RolloutActor:
    """One engine. Groups and weight updates share an event loop; the control calls have their own, so that they are
    answered while an engine starts, which blocks the first."""

    def __init__(self, model_dir: Path, config: Config) -> None:
        self._model_dir, self._config = model_dir, config
        self._engine: RolloutEngine | None = None

    async def start(self) -> None:
        """Start the engine; apart from `__init__`, so that being placed and starting can be told from each other."""
        if self._config.rollout.num_gpus:
            check_gpu_driver()
        self._clips = ClipLoader(self._config.video)
        self._engine = await RolloutEngine.start(self._model_dir, self._config.model, self._config.rollout)

    async def generate(self, issue: Issue, prompt_ids: Sequence[int], handle: ClipHandle, sampling: Sampling) -> Group:
        """
        Raises:
            MemberLost: the engine's process is gone, or has no complete weights.
        """
        engine = self._started
        clip = await asyncio.to_thread(self._clips.load, handle)  # may come from another machine
        try:
            return await engine.generate(issue, prompt_ids, clip, sampling)
        except WeightSyncError as error:
            raise MemberLost(str(error)) from None
        except RolloutError:
            engine.check_alive()
            raise

    async def update_weights(self, version: int, file: Path) -> Confirmed:
        """
        Raises:
            MemberLost: the engine's process is gone.
        """
        try:
            return await self._started.update_weights(version, file)
        except WeightSyncError:
            self._started.check_alive()
            raise

    @ray.method(concurrency_group="control")
    async def ping(self) -> str:
        """The id of its node, once the actor has a process; raises MemberLost where its engine has died."""
        if self._engine is not None:
            self._engine.check_alive()
        return ray.get_runtime_context().get_node_id()

    @ray.method(concurrency_group="control")
    async def close(self) -> None:
        """End the engine's process, if there is one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @property
    def _started(self) -> RolloutEngine:
        assert self._engine is not None, "start() comes first"
        return self._engine


class RolloutWorker(ActorWorker):
    """One rollout actor, as a crew sees it."""

    def __init__(self, model_dir: Path, config: Config, place: Place) -> None:
        super().__init__(place)
        self._model_dir, self._config = model_dir, config
        self.node = ""
        """Its machine, by Ray's id, once it has one."""

    async def start(self) -> None:
        """
        Raises:
            RolloutError: the engine failed.
            ModelError: the model folder cannot be used.
            ResourceError: the machine's GPU driver cannot run the engine.
            MemberLost: the actor died, or did not start its engine within `rollout.start_timeout_s`.
        """
        rollout = self._config.rollout
        options = {
            "num_cpus": rollout.num_cpus,
            "num_gpus": rollout.num_gpus,
            "scheduling_strategy": self._place.strategy(),
            "max_concurrency": MAX_CALLS,
            "runtime_env": {"env_vars": engine_environment(rollout)},
        }
        remote_class = ray.remote(concurrency_groups={"control": 2})(RolloutActor)
        self._actor = remote_class.options(**options).remote(self._model_dir, self._config)
        self.node = await result_of(self._actor.ping.remote())  # its process may have had to be installed first
        start = Deadline(rollout.start_timeout_s, "rollout.start_timeout_s")
        await within(start, "the start of its engine", result_of(self._actor.start.remote()))

    async def ping(self) -> bool:
        return await result_of(self._actor.ping.remote()) in leaving_nodes()

    async def generate(self, issue: Issue, prompt_ids: Sequence[int], clip: ClipHandle, sampling: Sampling) -> Group:
        return await result_of(self._actor.generate.remote(issue, prompt_ids, clip, sampling))

    async def update_weights(self, version: int, weights: Weights) -> Confirmed:
        """
        Raises:
            WeightsLostError: the processes that held them are gone.
            WeightSyncError: the engine cannot load them.
            MemberLost: the actor died, or its machine cannot have them.
        """
        return await result_of(self._actor.update_weights.remote(version, await weights(self.node)))

    async def close(self) -> None:
        if self._actor is not None:
            with suppress(MemberLost):  # it is closed already
                await result_of(self._actor.close.remote())
