"""`museg bench rewards`: responses a second of both recipes on one core, and what the pool of actors adds."""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from statistics import median

import numpy as np

from museg_ray.bench.result import BenchResult, Row, at_least, at_most
from museg_ray.config.schema import Config, RewardConfig, RewardWeights
from museg_ray.events import no_events
from museg_ray.rewards.golden import GoldenCase, golden_cases
from museg_ray.rewards.pool import RewardPool
from museg_ray.rewards.recipe import Recipe
from museg_ray.rewards.reference import reference_rewards
from museg_ray.rewards.scorer import BatchScorer
from museg_ray.types import GroundingQuery, Group, Issue, Response

WEIGHTS = RewardWeights(matching=1.0, timestamp=1.0, format=1.0)
GROUP_SIZE = 8
BATCH_RESPONSES = 1000
BATCHES_IN_FLIGHT = 4
"""As in training, where more groups come while some are scored."""
WAYS = (
    "reference, one core",
    "paper, one core",
    "paper, groups of 8, one process",
    "paper, groups of 8, pool of one actor",
)
TARGET_PER_S, TARGET_OVERHEAD = 20_000.0, 0.10


def bench_rewards(rounds: int) -> BenchResult:
    """Medians over `rounds` rounds; in each the ways are timed one after the other. Ray must be initialised.

    The two recipes score the 1,500 golden cases one by one. The pool gets batches of 1,000 of their responses in groups
    of 8, and is compared with the same groups scored in one process, without Ray.
    """
    cases, groups = golden_cases(), _groups(golden_cases())
    queries = [_query(case) for case in cases]
    recipe, scorer = Recipe(RewardConfig()), BatchScorer(RewardConfig())
    requests = [([response.text for response in group.responses], group.query, WEIGHTS) for group in groups]
    ways: list[Callable[[], object]] = [
        lambda: [reference_rewards(case.response, case.truth) for case in cases],
        lambda: [recipe.score(case.response, query, WEIGHTS) for case, query in zip(cases, queries, strict=True)],
        lambda: scorer.score(requests),
    ]
    seconds = asyncio.run(_timed(rounds, ways, groups))
    counts = (len(cases), len(cases), BATCH_RESPONSES, BATCH_RESPONSES)
    per_s = [count / median(column) for count, column in zip(counts, zip(*seconds, strict=True), strict=True)]
    # Round by round: on a machine that others use too, the speed of a core changes from one to the next.
    overhead = median(in_pool_s / in_process_s for *_, in_process_s, in_pool_s in seconds) - 1.0
    return BenchResult(
        bench="rewards",
        rows=tuple(_row(way, each, per_s[0]) for way, each in zip(WAYS, per_s, strict=True)),
        targets=(
            at_least("recipe paper, responses/s on one core", per_s[1], TARGET_PER_S),
            at_most("time of the pool over one process", overhead, TARGET_OVERHEAD),
        ),
    )


def _row(way: str, per_s: float, reference_per_s: float) -> Row:
    return {"way": way, "responses/s": per_s, "µs each": 1e6 / per_s, "x reference": per_s / reference_per_s}


def _groups(cases: Sequence[GoldenCase]) -> list[Group]:
    """The golden mix as `BATCH_RESPONSES` responses in groups; each group has the truth of its first case."""
    logprobs = np.zeros(1, np.float32)
    responses = [Response((1,), logprobs, case.response, True) for case in islice(cycle(cases), BATCH_RESPONSES)]
    return [
        Group(
            issue=Issue(start // GROUP_SIZE, _query(cases[start % len(cases)]), phase="golden", seed=0),
            clip_key="golden",
            clip_duration_s=180.0,
            prompt_ids=(1,),
            responses=tuple(responses[start : start + GROUP_SIZE]),
            weight_version=0,
        )
        for start in range(0, BATCH_RESPONSES, GROUP_SIZE)
    ]


def _query(case: GoldenCase) -> GroundingQuery:
    return GroundingQuery("golden", "golden.mp4", "the golden event", case.truth)


async def _timed(rounds: int, ways: Sequence[Callable[[], object]], groups: Sequence[Group]) -> list[tuple[float, ...]]:
    """Of each round the seconds of one call of each way, and of one batch through the pool."""
    pool = RewardPool(Config(), no_events)
    try:
        await pool.ready()
        await _through_pool(pool, groups)  # the first batch imports
        return [(*map(_seconds, ways), await _through_pool(pool, groups)) for _ in range(rounds)]
    finally:
        await pool.close()


def _seconds(call: Callable[[], object], num_calls: int = 10) -> float:
    start_s = time.perf_counter()
    for _ in range(num_calls):
        call()
    return (time.perf_counter() - start_s) / num_calls


async def _through_pool(pool: RewardPool, groups: Sequence[Group], num_batches: int = 60) -> float:
    """Seconds a batch with `BATCHES_IN_FLIGHT` of them under way."""
    turns = asyncio.Semaphore(BATCHES_IN_FLIGHT)

    async def batch() -> None:
        async with turns:
            await asyncio.gather(*(pool.score(group, WEIGHTS) for group in groups))

    start_s = time.perf_counter()
    await asyncio.gather(*(batch() for _ in range(num_batches)))
    return (time.perf_counter() - start_s) / num_batches
