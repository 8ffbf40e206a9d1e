"""Joins or starts Ray, and checks beforehand that everything the run asks for can be placed."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from museg_ray.config.schema import Config
from museg_ray.errors import ResourceError

LOCAL_SPARE_CPUS = 64
"""Of a Ray of our own, for members that `museg scale` adds."""


def _start_local(config: Config) -> None:
    """A Ray of our own, on free ports, so that two runs on one machine do not meet.

    Reservations are logical: a machine with fewer cores than the config reserves runs it all the same, slower.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else Ray writes a token under the home folder
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves the run beside anything else on the machine
    num_cpus = max(os.cpu_count() or 1, math.ceil(config.num_cpus_needed)) + LOCAL_SPARE_CPUS
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="error")


def _connect(config: Config) -> None:
    try:
        if "RAY_ADDRESS" in os.environ:
            # Bare: Ray merges the submitted job's environment itself and refuses keys that both sides set.
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start_local(config)
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        place = os.environ.get("RAY_ADDRESS", "this machine")
        raise ResourceError(
            f"Ray did not start on {place}: {error}. Check free ports and disk space (Ray writes to /tmp/ray), "
            "or unset RAY_ADDRESS to start a local Ray."
        ) from error


def check_capacity(config: Config, cluster: dict[str, float]) -> None:
    """Compare what the actors reserve with what the cluster has: Ray itself would wait for ever without a word.

    Raises:
        ResourceError: with the arithmetic.
    """
    wants = {"CPU": config.num_cpus_needed, "GPU": config.num_gpus_needed}
    for kind, wanted in wants.items():
        there = cluster.get(kind, 0.0)
        if wanted > there + 1e-9:
            parts = (
                f"{config.rollout.num_actors} rollout actors x {getattr(config.rollout, f'num_{kind.lower()}s'):g} "
                f"+ {config.learner.num_ranks} learner ranks x {getattr(config.learner, f'num_{kind.lower()}s'):g}"
            )
            if kind == "CPU":
                parts += (
                    f" + {config.rewards.num_actors} reward actors x {config.rewards.num_cpus:g}"
                    f" + {config.video.num_actors} clip actors x {config.video.num_cpus:g}"
                )
            raise ResourceError(
                f"The run reserves {wanted:g} {kind}s ({parts}); the Ray cluster has {there:g}. "
                "Lower rollout.num_actors or the num_cpus / num_gpus of the parts, or add nodes."
            )


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Ray for the length of one run: the cluster of `RAY_ADDRESS` (set inside a Ray job), else a local one.

    Raises:
        ResourceError: Ray cannot start, or the cluster is too small.
    """
    _connect(config)
    try:
        check_capacity(config, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()
