"""`museg bench rewards`: responses a second of both recipes on one core, and what the pool of actors adds.

One by one is how a training loop without a pool scores them; the pool's actor prepares a query once for its group."""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from statistics import median

import numpy as np

from museg_ray.bench.golden import GoldenCase, golden_cases
from museg_ray.bench.result import BenchResult, Target
from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.rewards.pool import RewardPool
from museg_ray.rewards.recipe import Recipe
from museg_ray.rewards.reference import ReferenceRewards, reference_rewards
from museg_ray.types import GroundingQuery, Response, ResponseGroup, RewardParts

WEIGHTS = RewardWeights(matching=1.0, timestamp=1.0, format=1.0)
GROUP_SIZE = 8
BATCH_RESPONSES = 1000
BATCHES_IN_FLIGHT = 3
"""As in training, where more groups come while some are scored."""
TARGET_PER_S, TARGET_OVERHEAD = 20_000.0, 0.10


def bench_rewards(rounds: int) -> BenchResult:
    """Medians over `rounds` rounds; in each the ways are timed one after the other. Ray must be initialised."""
    cases = golden_cases()
    groups = _groups(cases)
    recipe = Recipe(RewardConfig())

    def direct() -> list[RewardParts]:
        return [recipe.score(response.text, group.query, WEIGHTS) for group in groups for response in group.responses]

    def reference() -> list[ReferenceRewards]:
        return [reference_rewards(case.response, case.truth) for case in cases]

    seconds = asyncio.run(_timed(rounds, direct, reference, groups))
    direct_s, reference_s, pool_s = (median(column) for column in zip(*seconds, strict=True))
    # Round by round: on a machine that others use too, the speed of a core changes from one to the next.
    overhead = median(pool_s / direct_s for direct_s, _, pool_s in seconds) - 1.0
    paper_per_s, reference_per_s = BATCH_RESPONSES / direct_s, len(cases) / reference_s
    return BenchResult(
        bench="rewards",
        rows=(
            _row("recipe reference, one by one", reference_per_s, reference_per_s),
            _row("recipe paper, one by one", paper_per_s, reference_per_s),
            _row("recipe paper, pool of one actor", BATCH_RESPONSES / pool_s, reference_per_s),
        ),
        targets=(
            Target("recipe paper, responses/s on one core", paper_per_s, TARGET_PER_S, paper_per_s >= TARGET_PER_S),
            Target(
                "pool of one actor over one by one, share of the time",
                overhead,
                TARGET_OVERHEAD,
                overhead <= TARGET_OVERHEAD,
            ),
        ),
    )


def _row(way: str, per_s: float, reference_per_s: float) -> dict[str, str | float]:
    return {
        "way": way,
        "responses/s": per_s,
        "µs each": 1e6 / per_s,
        "x reference": per_s / reference_per_s,
    }


def _groups(cases: Sequence[GoldenCase]) -> list[ResponseGroup]:
    """The golden mix as `BATCH_RESPONSES` responses in groups; each group has the truth of its first case."""
    logprobs = np.zeros(1, np.float32)
    responses = [Response((1,), logprobs, case.response, True) for case in islice(cycle(cases), BATCH_RESPONSES)]
    return [
        ResponseGroup(
            query=GroundingQuery(f"golden/{start}", "golden.mp4", "the golden event", cases[start % len(cases)].truth),
            clip_key="golden",
            clip_duration_s=180.0,
            prompt_ids=(1,),
            responses=tuple(responses[start : start + GROUP_SIZE]),
            weight_version=0,
        )
        for start in range(0, BATCH_RESPONSES, GROUP_SIZE)
    ]


async def _timed(
    rounds: int, direct: Callable[[], object], reference: Callable[[], object], groups: Sequence[ResponseGroup]
) -> list[tuple[float, float, float]]:
    """Of each round the seconds of one call of `direct`, of one of `reference`, and of one batch through the pool."""
    pool = RewardPool(RewardConfig(num_actors=1))
    try:
        await pool.ready()
        await _through_pool(pool, groups)  # the first batch imports
        return [(_seconds(direct), _seconds(reference), await _through_pool(pool, groups)) for _ in range(rounds)]
    finally:
        pool.close()


def _seconds(call: Callable[[], object], num_calls: int = 10) -> float:
    start_s = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - start_s) / num_calls


async def _through_pool(pool: RewardPool, groups: Sequence[ResponseGroup], num_batches: int = 100) -> float:
    """Seconds a batch with `BATCHES_IN_FLIGHT` of them under way."""
    turns = asyncio.Semaphore(BATCHES_IN_FLIGHT)

    async def batch() -> None:
        async with turns:
            await asyncio.gather(*(pool.score(group, WEIGHTS) for group in groups))

    start_s = time.perf_counter()
    await asyncio.gather(*(batch() for _ in range(num_batches)))
    return (time.perf_counter() - start_s) / num_batches
