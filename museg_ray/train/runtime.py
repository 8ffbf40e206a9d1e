"""Joins or starts Ray, and checks beforehand that everything the run asks for can be placed."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from museg_ray.config.schema import Config
from museg_ray.errors import ResourceError
from museg_ray.fleet.local_ray import local_ray, start_told
from museg_ray.fleet.places import needs

LOCAL_SPARE_CPUS = 64
"""Of a Ray of our own, for members that `museg scale` adds."""


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """All settings are the cluster's own. Bare: Ray merges the submitted job's environment itself and refuses keys that
    both sides set."""
    with start_told(address):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _reserved(config: Config, kind: str) -> list[tuple[int, float, str]]:
    """Of each part that reserves CPUs, or GPUs: how many processes, how many each of them, and what they are."""
    processes = {
        "rollout": (config.rollout.num_actors, "rollout actors"),
        "learner": (config.learner.num_ranks, "learner ranks"),
        "reward": (config.rewards.num_actors, "reward actors"),
        "clips": (config.video.num_actors, "clip actors"),
    }
    each = needs(config)
    return [(count, each[role][kind], what) for role, (count, what) in processes.items() if kind in each[role]]


def check_capacity(config: Config, cluster: dict[str, float]) -> None:
    """Compare what the actors reserve with what the cluster has: Ray itself would wait for ever without a word.

    Raises:
        ResourceError: with the arithmetic.
    """
    for kind in ("CPU", "GPU"):
        parts, there = _reserved(config, kind), cluster.get(kind, 0.0)
        wanted = sum(count * each for count, each, _ in parts)
        if wanted > there + 1e-9:
            shown = " + ".join(f"{count} {what} x {each:g}" for count, each, what in parts)
            raise ResourceError(
                f"The run reserves {wanted:g} {kind}s ({shown}); the Ray cluster has {there:g}. "
                "Lower rollout.num_actors or the num_cpus / num_gpus of the parts, or add nodes."
            )


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Ray for the length of one run: the cluster of `RAY_ADDRESS` (set inside a Ray job), else a local one.

    Raises:
        ResourceError: Ray cannot start, or the cluster is too small.
    """
    # Ray's own answer to SIGTERM, which it puts in place first of all, exits without a word from wherever it is.
    ray._private.utils.set_sigterm_handler = lambda handler: None
    address = os.environ.get("RAY_ADDRESS")
    # Reservations are logical: a machine with fewer cores than the config reserves runs it all the same, slower.
    reserved = sum(count * each for count, each, _ in _reserved(config, "CPU"))
    num_cpus = max(os.cpu_count() or 1, math.ceil(reserved)) + LOCAL_SPARE_CPUS
    with _cluster(address) if address is not None else local_ray(num_cpus):
        check_capacity(config, ray.cluster_resources())
        yield
