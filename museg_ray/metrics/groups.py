"""What the responses of one step say about the policy: mean rewards, their spread, and the shape of the answers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from museg_ray.metrics import names
from museg_ray.types import Group, RewardParts, Segment

FULL_LENGTH_SHARE = 0.9
"""An answer that covers at least this share of its video says nothing about when."""
SAME_ANSWER_DECIMALS = 1
"""Answers are the same when their seconds agree after rounding to so many decimals."""

Answered = tuple[Group, tuple[Segment, ...]]
"""A valid answer and the group it belongs to."""


def group_metrics(sampled: Sequence[Group], rollout_s: float, dropped: Sequence[Group] = ()) -> dict[str, float]:
    """Metrics of one step's responses; a share that no response could count for is absent.

    `rollout/*` and the share of equal groups are of all responses, the others of those that the learner gets.

    Args:
        sampled: at least one of them comparable.
        rollout_s: seconds that their generation took, above 0.
        dropped: sampled too, and left out since their responses all earned the same.

    Returns:
        metric name -> value: `reward/*`, `rollout/*` and `answer/*`, all finite.
    """
    groups = [group for group in sampled if group.is_comparable]
    rewards = [parts for group in groups for parts in group.rewards]
    responses = [response for group in (*sampled, *dropped) for response in group.responses]
    num_equal = sum(group.has_equal_rewards for group in groups) + len(dropped)
    return {
        **_reward_means(rewards),
        names.REWARD_STD: _mean_std(groups),
        names.REWARD_EQUAL_GROUPS_SHARE: num_equal / (len(groups) + len(dropped)),
        names.ROLLOUT_RESPONSES_PER_S: len(responses) / rollout_s,
        names.ROLLOUT_COMPLETION_TOKENS: fmean(len(r.token_ids) for r in responses),
        names.ROLLOUT_TRUNCATED_SHARE: fmean(not r.finished for r in responses),
        names.ANSWER_INVALID_SHARE: fmean(not r.predicted for r in rewards),
        **_answer_shares(groups),
    }


def _mean_std(groups: Sequence[Group]) -> float:
    """Over the groups, of the rewards' standard deviation."""
    return fmean(float(np.std([parts.total for parts in group.rewards], ddof=1)) for group in groups)


def _reward_means(rewards: Sequence[RewardParts]) -> dict[str, float]:
    extras = defaultdict(list)
    for parts in rewards:
        for name, value in parts.extras:
            extras[f"reward/{name}"].append(value)
    return {
        names.REWARD_TOTAL: fmean(r.total for r in rewards),
        names.REWARD_MATCHING: fmean(r.matching for r in rewards),
        names.REWARD_GLOBAL: fmean(r.global_match for r in rewards),
        names.REWARD_LOCAL: fmean(r.local_match for r in rewards),
        names.REWARD_TIMESTAMP: fmean(r.timestamp for r in rewards),
        names.REWARD_FORMAT: fmean(r.format for r in rewards),
        **{metric: fmean(values) for metric, values in extras.items()},
    }


def _answer_shares(groups: Sequence[Group]) -> dict[str, float]:
    answers = [(group, parts.predicted) for group in groups for parts in group.rewards if parts.predicted]
    shares = {
        names.ANSWER_SINGLE_SEGMENT_SHARE: _single_segment_share(answers),
        names.ANSWER_SAME_SHARE: _same_share(answers),
        names.ANSWER_FULL_LENGTH_SHARE: _full_length_share(answers),
    }
    return {metric: share for metric, share in shares.items() if share is not None}


def _single_segment_share(answers: Sequence[Answered]) -> float | None:
    """Of the answers to queries with several true segments, those that name one; None without such a query."""
    counts = [len(predicted) for group, predicted in answers if len(group.query.segments) >= 2]
    return fmean(count == 1 for count in counts) if counts else None


def _same_share(answers: Sequence[Answered]) -> float | None:
    """Share of the most frequent answer that different videos got; None with answers for fewer than two videos."""
    videos_of_answer: dict[tuple[Segment, ...], list[str]] = defaultdict(list)
    for group, predicted in answers:
        videos_of_answer[_rounded(predicted)].append(group.query.video)
    if len({group.query.video for group, _ in answers}) < 2:
        return None
    most = max((len(videos) for videos in videos_of_answer.values() if len(set(videos)) >= 2), default=0)
    return most / len(answers)


def _rounded(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    decimals = SAME_ANSWER_DECIMALS
    return tuple((round(start_s, decimals), round(end_s, decimals)) for start_s, end_s in segments)


def _full_length_share(answers: Sequence[Answered]) -> float | None:
    """Of the answers to queries whose truth leaves a part of the video out, those that do not; None without any."""
    by_id = {id(group): group for group, _ in answers}
    is_asked = {key: not _covers_all(group.query.segments, group.clip_duration_s) for key, group in by_id.items()}
    is_full = [_covers_all(predicted, group.clip_duration_s) for group, predicted in answers if is_asked[id(group)]]
    return fmean(is_full) if is_full else None


def _covers_all(segments: Iterable[Segment], duration_s: float) -> bool:
    return _covered_s(segments, duration_s) >= FULL_LENGTH_SHARE * duration_s


def _covered_s(segments: Iterable[Segment], duration_s: float) -> float:
    """Seconds between 0 and `duration_s` that at least one segment covers."""
    covered_s = reached_s = 0.0
    for start_s, end_s in sorted(segments):
        end_s = min(end_s, duration_s)
        covered_s += max(0.0, end_s - max(start_s, reached_s))
        reached_s = max(reached_s, end_s)
    return covered_s
