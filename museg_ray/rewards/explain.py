"""Why a response scored as it did: every part with what it was computed from."""

from typing import NamedTuple

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.rewards.answer import ParsedResponse, parse_response
from museg_ray.rewards.citation import MAX_CITATIONS, count_citations
from museg_ray.rewards.format import format_problem
from museg_ray.rewards.further import THRESHOLDS
from museg_ray.rewards.matching import Match, match_segments
from museg_ray.rewards.recipe import Recipe
from museg_ray.rewards.segments import intersection, total_length, union
from museg_ray.types import GroundingQuery, RewardParts, Segment


class ExplainedPart(NamedTuple):
    """One line of the sum."""

    symbol: str
    """As in the paper; empty where it has none."""
    name: str
    value: float
    weight: float | None
    """None for r_G and r_L, which count through r_M."""
    why: str


class Explanation(NamedTuple):
    """A response's rewards and what they were computed from."""

    response: ParsedResponse
    truth: tuple[Segment, ...]
    """Sorted by start."""
    matches: tuple[Match, ...]
    """The pairs that r_L is the mean over; without local matching those of `sequential`, for the eye only."""
    parts: tuple[ExplainedPart, ...]
    rewards: RewardParts


def explain(text: str, query: GroundingQuery, config: RewardConfig, weights: RewardWeights) -> Explanation:
    """Score a response with the recipe `paper` and say of every part where it comes from.

    Raises:
        ConfigError: `rewards.custom` cannot be imported.
    """
    response, truth = parse_response(text), tuple(sorted(query.segments))
    rewards = Recipe(config).prepare(query, weights).score(response)
    local = "sequential" if config.local_matching == "none" else config.local_matching
    matches = tuple(match_segments(response.segments, truth, local))
    return Explanation(response, truth, matches, _parts(response, truth, rewards, config, weights), rewards)


def _parts(
    response: ParsedResponse,
    truth: tuple[Segment, ...],
    rewards: RewardParts,
    config: RewardConfig,
    weights: RewardWeights,
) -> tuple[ExplainedPart, ...]:
    problem = response.answer_problem
    has_local = config.local_matching != "none"
    how_matched = "(r_G + r_L) / 2" if has_local else "r_G (rewards.local_matching is none)"
    how_format = format_problem(response) or "one think block, then one valid answer block, and nothing else"
    paper = (
        ExplainedPart("r_G", "global", rewards.global_match, None, problem or _why_global(response, truth, config)),
        ExplainedPart("r_L", "local", rewards.local_match, None, problem or _why_local(response, truth, config)),
        ExplainedPart("r_M", "matching", rewards.matching, weights.matching, how_matched),
        ExplainedPart(
            "r_T", "timestamp", rewards.timestamp, weights.timestamp, problem or _why_timestamp(response, config)
        ),
        ExplainedPart("r_F", "format", rewards.format, weights.format, how_format),
    )
    further = (
        ExplainedPart("", name, value, getattr(weights, name), _why_further(name, response, config))
        for name, value in rewards.extras
    )
    return (*(part for part in paper if has_local or part.symbol != "r_L"), *further)


def _why_further(name: str, response: ParsedResponse, config: RewardConfig) -> str:
    brevity = config.brevity
    return {
        "tiou": "IoU of the covered time",
        "recall": f"share of {', '.join(f'{t:g}' for t in THRESHOLDS)} that the IoU of the covered time reaches",
        "wasserstein": f"exp(-{config.wasserstein_beta:g} W1 / covered seconds)",
        "brevity": f"{len(response.text)} characters; 1 up to {brevity.free_chars}, 0 from {brevity.max_chars} on",
        "custom": config.custom,
    }[name]


def _why_global(response: ParsedResponse, truth: tuple[Segment, ...], config: RewardConfig) -> str:
    answered, true = union(response.segments), union(truth)
    shared_s, covered_s = total_length(intersection(answered, true)), total_length(union(answered + true))
    measure = "IoU" if config.global_matching == "iou" else "F1"
    return f"{measure}: {shared_s:.2f} s shared of the {covered_s:.2f} s that either covers"


def _why_local(response: ParsedResponse, truth: tuple[Segment, ...], config: RewardConfig) -> str:
    answered, true = len(response.segments), len(truth)
    order = "in order of time" if config.local_matching == "sequential" else "by best fit"
    return f"sum of NGIoU {order} / max({answered} answered, {true} true)"


def _why_timestamp(response: ParsedResponse, config: RewardConfig) -> str:
    counts = count_citations(response.segments, response.reasoning)
    absent = [f"{time_s:.10g}" for time_s, count in counts.items() if not count]
    too_often = [f"{time_s:.10g} ({count} times)" for time_s, count in counts.items() if count > MAX_CITATIONS]
    faults = [f"not in the reasoning: {', '.join(absent)}"] if absent else []
    faults += [f"there more than {MAX_CITATIONS} times: {', '.join(too_often)}"] if too_often else []
    if faults:
        rule = "all must be cited" if config.timestamp == "all" else "the cited share counts"
        return f"{'; '.join(faults)} ({rule})"
    return f"all {len(counts)} times of the answer are in the reasoning"
