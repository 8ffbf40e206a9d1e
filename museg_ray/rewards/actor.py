"""The scorer as a Ray actor."""

import ray
from ray.actor import ActorHandle

from museg_ray.config.schema import RewardConfig
from museg_ray.rewards.scorer import BatchScorer, pack_outcomes, unpack


class RewardActor:
    """Scores one batch after the other."""

    def __init__(self, config: RewardConfig) -> None:
        self._scorer = BatchScorer(config)

    def score(self, *parts: bytes) -> bytes:
        """`pack`ed groups -> `pack_outcomes`. Ray runs it in the process's main thread, where signals arrive."""
        return pack_outcomes(self._scorer.score(unpack(parts)))


def start_actor(config: RewardConfig, num_cpus: float) -> "ActorHandle[RewardActor]":
    """A new reward actor in a process of its own."""
    # Ray leaves GPUs visible to actors that reserve none.
    cpu_only = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    actor = ray.remote(RewardActor).options(num_cpus=num_cpus, runtime_env=cpu_only).remote(config)
    assert isinstance(actor, ActorHandle)  # to the type checker it may also be the plain class
    return actor
