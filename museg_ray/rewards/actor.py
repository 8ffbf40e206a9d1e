"""The scorer as a Ray actor, and the crew's hold on one."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from museg_ray.config.schema import RewardConfig
from museg_ray.errors import RewardError
from museg_ray.fleet.errors import MemberLost, result_of, started
from museg_ray.fleet.places import Place
from museg_ray.fleet.worker import ActorWorker
from museg_ray.rewards.scorer import BatchScorer, pack_outcomes, unpack


class RewardActor:
    """Scores one batch after the other."""

    def __init__(self, config: RewardConfig) -> None:
        self._scorer = BatchScorer(config)

    def score(self, *parts: bytes) -> bytes:
        """`pack`ed groups -> `pack_outcomes`. Ray runs it in the process's main thread, where signals arrive."""
        return pack_outcomes(self._scorer.score(unpack(parts)))


class RewardWorker(ActorWorker):
    """One reward actor, as a crew sees it."""

    def __init__(self, config: RewardConfig, num_cpus: float, place: Place) -> None:
        super().__init__(place)
        self._config, self._num_cpus = config, num_cpus
        self._num_calls = 0

    async def start(self) -> None:
        """
        Raises:
            RewardError: it cannot start.
            MemberLost: its process died.
        """
        if self._actor is None:
            # Ray leaves GPUs visible to actors that reserve none.
            options: Any = {"num_cpus": self._num_cpus, "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}}
            remote_class = ray.remote(RewardActor).options(scheduling_strategy=self._place.strategy(), **options)
            self._actor = remote_class.remote(self._config)
        try:
            await started(self._actor.__ray_ready__.remote())
        except RayError as error:
            raise RewardError(
                f"A reward actor did not start: {_lines(error)[-1]} A module that rewards.custom names must be "
                "importable on every node; for other reasons look into the Ray worker logs."
            ) from error

    async def ping(self) -> bool:
        """Of an idle one: what scores is busy with its one thread, and its calls have deadlines of their own."""
        if not self._num_calls:
            await result_of(self._actor.__ray_ready__.remote())
        return False

    async def score(self, parts: Sequence[bytes]) -> bytes:
        """
        Raises:
            MemberLost: the actor died.
            RewardError: a fault of ours in the actor.
        """
        self._num_calls += 1
        try:
            return await self._actor.score.remote(*parts)
        except RayTaskError as error:
            raise RewardError(f"A reward actor failed, which is a fault of museg_ray: {error}") from error
        except RayError as error:
            raise MemberLost(f"{type(error).__name__}: {_lines(error)[0]}") from error
        finally:
            self._num_calls -= 1


def _lines(error: BaseException) -> list[str]:
    return [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
