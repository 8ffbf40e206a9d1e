"""The recipe `reference`: what MUSEG's published code computes, holes included, to compare with; never to train with.

An empty answer earns the full format reward, `0.00-inf` a reward of NaN, a reversed truth one of -11, and overlapping
true segments a global reward of up to 1.47. The recipe `paper` closes all of these; see docs/rewards.md.

Source: `src/train.py` of the code published with MUSEG (arXiv 2505.20715). Pinned by its own results on 1,500 responses
(assets/rewards_reference.jsonl.gz).
"""

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import NamedTuple

from museg_ray.rewards.segments import union
from museg_ray.types import Segment

Segments = Sequence[Segment]

_WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ABSENT: Segment = (1e9, 1e9 + 1)
"""Stands in for a missing partner; an answer of exactly this segment matches it fully."""
_EPSILON = 1e-6
_MAX_CITATIONS = 10


class ReferenceRewards(NamedTuple):
    """The published code's numbers for one response. Stage 1 adds the first and the last, stage 2 the second and last.

    The names are the columns of the golden file.
    """

    format_with_timestamp: float
    """0, 0.2 (tags), 0.6 (and every item parses) or 1 (and every time is cited)."""
    format_without_timestamp: float
    """0, 0.2 or 1."""
    global_f1: float
    """Usually in [0, 1]; above 1 where true segments overlap."""
    local_ngiou_unsorted: float
    """Usually in [0, 1]; NaN for an infinite time."""
    segment_matching_sum: float
    """The two before, added and not averaged."""


def reference_rewards(text: str, truth: Sequence[Segment]) -> ReferenceRewards:
    """Rewards of the published code.

    Args:
        text: the response.
        truth: [m] true segments as annotated: neither sorted nor cleaned.
    """
    with_timestamp, without_timestamp = _formats(text)
    global_f1, local_ngiou = _matching(text, truth)
    return ReferenceRewards(with_timestamp, without_timestamp, global_f1, local_ngiou, global_f1 + local_ngiou)


def _formats(text: str) -> tuple[float, float]:
    """Format rewards of stage 1 and stage 2."""
    has_one_of_each = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    whole = _WHOLE.fullmatch(text) if has_one_of_each else None  # with many tags the match takes quadratic time
    if whole is None:
        return 0.0, 0.0
    times = _emitted(whole[2])
    if times is None:
        return 0.2, 0.2
    return (1.0 if all(_is_cited(time, whole[1]) for pair in times for time in pair) else 0.6), 1.0


def _emitted(answer: str) -> list[Segment] | None:
    """The answer's items as floats, in the order written; None when one does not parse. Parts after two are ignored."""
    try:
        parts = [item.split("-") for item in answer.split()]
        return [(float(part[0]), float(part[1])) for part in parts]
    except (ValueError, IndexError):
        return None


def _is_cited(time: float, reasoning: str) -> bool:
    """The float's text is taken for a pattern: its point matches anything, and it may lie inside a longer number."""
    return 1 <= len(re.findall(str(time), reasoning)) <= _MAX_CITATIONS


def _matching(text: str, truth: Sequence[Segment]) -> tuple[float, float]:
    """F1 of covered time and NGIoU in the order written; any invalid segment makes both 0, a division by 0 that one."""
    answers = _ANSWER.findall(text) if text.count("<answer>") == text.count("</answer>") == 1 else []
    predicted = _emitted(answers[0]) if answers else None
    if predicted is None or not all(0 <= start < end for start, end in predicted):
        return 0.0, 0.0
    return _or_0(_global_f1, predicted, truth), _or_0(_local_ngiou, predicted, truth)


def _or_0(part: Callable[[Segments, Segments], float], predicted: Segments, truth: Segments) -> float:
    try:
        return part(predicted, truth)
    except ZeroDivisionError:  # e.g. a true segment that is an answered one reversed
        return 0.0


def _global_f1(predicted: Segments, truth: Segments) -> float:
    """Predicted segments are merged before they are counted, true ones are not."""
    merged = union(predicted)
    shared = sum(max(0.0, min(end, t[1]) - max(start, t[0])) for t in truth for start, end in merged)
    precision = shared / (sum(end - start for start, end in merged) + _EPSILON)
    recall = shared / (sum(end - start for start, end in truth) + _EPSILON)
    return 2 * precision * recall / (precision + recall + _EPSILON)


def _local_ngiou(predicted: Segments, truth: Segments) -> float:
    values = [_ngiou(t, p) for t, p in zip_longest(truth, predicted, fillvalue=_ABSENT)]
    return sum(values) / len(values)


def _ngiou(a: Segment, b: Segment) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    covered = a[1] - a[0] + b[1] - b[0] - shared
    enclosing = max(a[1], b[1]) - min(a[0], b[0])
    return (1 + shared / covered - (enclosing - covered) / enclosing) / 2
