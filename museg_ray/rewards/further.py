"""The further rewards: plain IoU, R1@t as steps, nearness on the time axis, shortness; and `custom`, a function of the
user's, by import path."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from museg_ray.config.schema import BrevityConfig, RewardConfig
from museg_ray.config.user_function import load_function
from museg_ray.errors import RewardError
from museg_ray.rewards.answer import ParsedResponse
from museg_ray.rewards.segments import iou, total_length, union
from museg_ray.types import GroundingQuery, Segment

Reward: TypeAlias = Callable[[ParsedResponse, GroundingQuery], float]
"""`my_reward(response, query) -> float` in [0, 1]. It must return the same for the same arguments, and soon: it runs
in the reward actors, once a response, under `rewards.response_timeout_s`."""

THRESHOLDS = (0.3, 0.5, 0.7)
"""The IoUs at which Charades-STA and its successors count a hit."""


def further_rewards(config: RewardConfig) -> dict[str, Reward]:
    """The rewards beyond the paper's, by the name that gives them a weight.

    Raises:
        ConfigError: `rewards.custom` cannot be imported.
    """
    rewards: dict[str, Reward] = {
        "tiou": tiou_reward,
        "recall": recall_reward,
        "wasserstein": partial(wasserstein_reward, beta=config.wasserstein_beta),
        "brevity": partial(brevity_reward, shape=config.brevity),
    }
    if config.custom:
        rewards["custom"] = load_reward(config.custom)
    return rewards


def tiou_reward(response: ParsedResponse, query: GroundingQuery) -> float:
    """|∪P ∩ ∪G| / |∪P ∪ ∪G| of covered seconds, in [0, 1]; 0 for an invalid answer.

    By itself it is the only reward of TimeLens (arXiv 2512.14698); beside `matching` it weighs r_G more.
    """
    return iou(response.segments, query.segments)


def recall_reward(response: ParsedResponse, query: GroundingQuery) -> float:
    """(1 / 3) Σ_t [IoU(P, G) >= t] over t = 0.3, 0.5, 0.7, in [0, 1]; 0 for an invalid answer.

    For one predicted and one true segment this is the mean of R1@t, the metric that single-segment benchmarks report
    (TALL, arXiv 1705.02101, section 4.2); for several the IoU is that of the covered time.
    """
    overlap = iou(response.segments, query.segments)
    return sum(overlap >= threshold for threshold in THRESHOLDS) / len(THRESHOLDS)


def brevity_reward(response: ParsedResponse, _query: GroundingQuery, shape: BrevityConfig) -> float:
    """1 up to `free_chars` characters, 0 from `max_chars` on, linear between, in [0, 1]; 0 for an invalid answer.

    Only valid answers earn it: an empty response would be the shortest of all. In characters, since the reward is
    about what the model wrote and knows no tokenizer.

    Source: the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), raised by 1.
    """
    if not response.segments:
        return 0.0
    excess = (len(response.text) - shape.free_chars) / (shape.max_chars - shape.free_chars)
    return 1.0 - min(max(excess, 0.0), 1.0)


def wasserstein_reward(response: ParsedResponse, query: GroundingQuery, beta: float) -> float:
    """exp(-beta W1(P, G) / |∪P ∪ ∪G|), in [0, 1]; 1 for equal covered time, 0 for an invalid answer.

    W1 is the Wasserstein-1 distance in seconds between the uniform distributions over the covered time of answer and
    truth. It does not depend on where covered time is cut into segments, and it falls smoothly with the distance,
    where IoU is 0 everywhere.

    Source: reward `twass` of TimeLens2 (arXiv 2607.17423), beta 3 in its published code.
    """
    if not response.segments:
        return 0.0
    covered_s = total_length(union((*response.segments, *query.segments)))
    return math.exp(-beta * wasserstein_distance(union(response.segments), union(query.segments)) / covered_s)


def wasserstein_distance(a: Sequence[Segment], b: Sequence[Segment]) -> float:
    """W1 = ∫ |F_a - F_b| dt in seconds, at least 0, between uniform distributions over two non-empty disjoint unions.

    Both distribution functions are linear between neighbouring boundaries, so the integral is exact: a trapezium where
    their difference keeps its sign, two triangles where it changes.
    """
    times_s = np.unique([*a, *b])  # [T]
    gaps = _distribution(a, times_s) - _distribution(b, times_s)
    left, right = gaps[:-1], gaps[1:]
    both = np.abs(left) + np.abs(right)
    keeps_sign = left * right >= 0
    means = np.where(keeps_sign, both / 2, (left**2 + right**2) / (2 * np.where(keeps_sign, 1.0, both)))
    return float(means @ np.diff(times_s))


def _distribution(disjoint: Sequence[Segment], times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of the covered time that lies before each of the times, [T] -> [T]."""
    covered_s = np.cumsum([part_s for start_s, end_s in disjoint for part_s in (0.0, end_s - start_s)])
    return np.interp(times_s, np.ravel(disjoint), covered_s / covered_s[-1])


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
