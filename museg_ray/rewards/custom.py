"""The further reward `custom`: a function of the user's, by import path."""

from collections.abc import Callable
from numbers import Real
from typing import TypeAlias

from museg_ray.config.user_function import load_function
from museg_ray.errors import RewardError
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
    return _checked(path, load_function("rewards.custom", path))


def _checked(path: str, function: Reward) -> Reward:
    """Invariant: no reward outside [0, 1] and no NaN gets past here; one NaN poisons its whole group's advantages."""

    def reward(response: ParsedResponse, query: GroundingQuery) -> float:
        value: object = function(response, query)
        if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
            raise RewardError(f"{path} returned {value!r}; a reward must be a number in [0, 1].")
        return float(value)

    return reward
