"""The further reward `custom`: a function of the user's, by import path."""

import importlib
import os
import sys
from collections.abc import Callable
from numbers import Real
from typing import TypeAlias

from museg_ray.errors import ConfigError, RewardError
from museg_ray.rewards.answer import ParsedResponse
from museg_ray.types import GroundingQuery

Reward: TypeAlias = Callable[[ParsedResponse, GroundingQuery], float]
"""`my_reward(response, query) -> float` in [0, 1]. It must return the same for the same arguments, and soon: it runs
in the reward actors, once a response, under `rewards.response_timeout_s`."""


def load_reward(path: str) -> Reward:
    """The function at `package.module.function`, its results checked.

    Raises:
        ConfigError: no such module or function.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does; the `museg` command has its own folder there instead
    module_name, _, function_name = path.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), function_name) if module_name else None
    except Exception as error:  # whatever the user's module does while it is imported
        fault = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"rewards.custom is {path!r}, which cannot be imported: {fault}. Expected package.module.function; the "
            "package must be installed, or lie in the working directory (in a Ray job: in --working-dir)."
        ) from error
    if not callable(function):
        raise ConfigError(f"rewards.custom is {path!r}; expected package.module.function, a function to call.")
    return _checked(path, function)


def _checked(path: str, function: Reward) -> Reward:
    """Invariant: no reward outside [0, 1] and no NaN gets past here; one NaN poisons its whole group's advantages."""

    def reward(response: ParsedResponse, query: GroundingQuery) -> float:
        value: object = function(response, query)
        if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
            raise RewardError(f"{path} returned {value!r}; a reward must be a number in [0, 1].")
        return float(value)

    return reward
