"""The learner in a Ray actor of its own, and the driver's handle on it."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from museg_ray.config.schema import Config, LearnerConfig, PhaseConfig
from museg_ray.errors import LearnerError, MusegError
from museg_ray.types import ScoredGroup
from museg_ray.video.loader import ClipHandle, ClipLoader

if TYPE_CHECKING:
    from museg_ray.learner.learner import Learner

Result = TypeVar("Result")


class LearnerActor:
    """Fetches what an update needs and puts away what it gives; `Learner` does the work. One rank."""

    _learner: "Learner"

    def start(self, config: Config, model_dir: Path) -> None:
        """The first call. Not in `__init__`, whose errors Ray reports without their type."""
        # Here and not above: DeepSpeed chooses its accelerator when it is imported, from this process's environment.
        from museg_ray.learner.learner import Learner

        self._learner = Learner(config, model_dir)
        self._clips = ClipLoader(config.video)

    def update(self, groups: Sequence[ScoredGroup], clips: Mapping[str, ClipHandle]) -> dict[str, float]:
        return self._learner.update(groups, {key: self._clips.load(handle) for key, handle in clips.items()})

    def export_weights(self) -> ray.ObjectRef:
        return ray.put(self._learner.export_weights())

    def start_phase(self, phase: PhaseConfig) -> None:
        self._learner.start_phase(phase)

    def save_checkpoint(self, out_dir: Path) -> None:
        self._learner.save_checkpoint(out_dir)

    def export_model(self, out_dir: Path) -> None:
        self._learner.export_model(out_dir)


def _environment(config: LearnerConfig) -> dict[str, str]:
    """Environment variables of the learner's process, set before torch and DeepSpeed are imported."""
    variables: dict[str, str] = {}
    if config.num_gpus == 0:
        # Ray leaves GPUs visible to actors that reserve none. Waiting threads must not spin on the engines' cores.
        variables |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}
    if config.num_threads > 0:
        variables["OMP_NUM_THREADS"] = str(config.num_threads)
    return variables


class LearnerHandle:
    """What the driver holds. Errors of ours come out as they were raised; used from one event loop."""

    def __init__(self, config: Config, model_dir: Path) -> None:
        """Start the actor; `ready` tells when it holds the model."""
        learner = config.learner
        self._step_timeout_s = learner.step_timeout_s
        environment = {"env_vars": _environment(learner)}
        options = {"num_cpus": learner.num_cpus, "num_gpus": learner.num_gpus, "runtime_env": environment}
        self._actor: ActorHandle = ray.remote(LearnerActor).options(**options).remote()
        self._started: ray.ObjectRef = self._actor.start.remote(config, model_dir)

    async def ready(self) -> None:
        """Wait until the learner holds the model.

        Raises:
            ModelError, ConfigError: the learner cannot start on this folder or these settings.
            LearnerError: its process died.
        """
        await _result(self._started)

    async def update(self, groups: Sequence[ScoredGroup], clips: Mapping[str, ClipHandle]) -> dict[str, float]:
        """One optimiser step, see `Learner.update`. The learner opens the clips itself: no pixel passes here.

        Raises:
            LearnerError: not finite, not done within `learner.step_timeout_s`, or its process died.
        """
        try:
            async with asyncio.timeout(self._step_timeout_s):
                return await _result(self._actor.update.remote(groups, clips))
        except TimeoutError:
            raise LearnerError(
                f"The learner's update of {len(groups)} groups was not done after {self._step_timeout_s:g} s "
                "(learner.step_timeout_s); raise it, or look into the learner's worker log."
            ) from None

    async def export_weights(self) -> ray.ObjectRef:
        """Reference to the blob of the present weights, which lies in the object store."""
        return await _result(self._actor.export_weights.remote())

    async def start_phase(self, phase: PhaseConfig) -> None:
        """Start anew what the phase wants fresh: exactly at its first step, before any update of that phase."""
        await _result(self._actor.start_phase.remote(phase))

    async def save_checkpoint(self, out_dir: Path) -> None:
        """Write DeepSpeed's checkpoint of weights, optimiser and schedule."""
        await _result(self._actor.save_checkpoint.remote(out_dir))

    async def export_model(self, out_dir: Path) -> None:
        """Write a Hugging Face folder of the policy."""
        await _result(self._actor.export_model.remote(out_dir))

    async def close(self) -> None:
        """End the learner's process, also in the middle of an update."""
        ray.kill(self._actor)


async def _result(reference: Awaitable[Result]) -> Result:
    """What a call of the actor returns; its errors as they were raised there.

    Ray wraps an error of a task in one whose message is the remote traceback, which is not for users.
    """
    try:
        return await reference
    except RayTaskError as error:
        if isinstance(error.cause, MusegError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise LearnerError(f"The learner's process died: {error}. Its worker log has the reason.") from error
