"""The named rules that an annotated row must keep, what may be done about a row that breaks one, and the checks of
segments.

A segment as annotated is any pair of numbers. A check takes all of a row and gives a `Finding`, which holds the mended
segments where there is an honest way to mend them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from museg_ray.errors import DataError
from museg_ray.types import MAX_TIME_S, Segment

CLIP_TOLERANCE_S = 1.0
"""Time outside the video that may be cut off. Annotated lengths are rounded: of the 410 released rows that end past
their video 407 do so by at most 0.85 s, the other three by 4 s and more."""
HALF_WIDTH_S = 0.25
"""A zero-length segment is widened by this to both sides: one sampling period of 0.5 s around its moment."""


NEGLIGIBLE_S = 1e-6
"""Less than this is what is left of arithmetic with floats; no row is refused for it."""


class Policy(StrEnum):
    """What happens to a row that breaks a rule."""

    REPAIR = "repair"
    """Mended, with segments before and after on record; quarantined where it cannot be."""
    QUARANTINE = "quarantine"
    """Set aside with its reason."""
    ERROR = "error"
    """The import ends."""
    NOTE = "note"
    """Kept as it is, and counted."""


class Rule(NamedTuple):
    meaning: str
    """What breaks it, and what the amount is where a finding has one."""
    default: Policy
    repair: str = ""
    """What `repair` does; empty where there is no repair."""

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Those that it can have."""
        return tuple(dict.fromkeys([self.default, *([Policy.REPAIR] if self.repair else []), *_ALWAYS]))


_ALWAYS = (Policy.QUARANTINE, Policy.ERROR)

RULES: dict[str, Rule] = {
    "malformed": Rule("the row cannot be read, lacks a field or has no segments", Policy.QUARANTINE),
    "not_grounding": Rule("a sound row of a task that is not answered by time alone", Policy.QUARANTINE),
    "not_finite": Rule(f"a time is NaN, infinite or beyond {MAX_TIME_S:.0e} s", Policy.QUARANTINE),
    "reversed": Rule("a segment ends before it starts, by AMOUNT", Policy.REPAIR, "swaps its two times"),
    "unsorted": Rule("segments are not in the order of their starts", Policy.REPAIR, "sorts them"),
    "negative": Rule(
        "a segment starts before the video, by AMOUNT",
        Policy.REPAIR,
        f"starts it at 0; not where AMOUNT is over {CLIP_TOLERANCE_S:g} s or all of it lies before",
    ),
    "past_end": Rule(
        "a segment ends after the video's annotated duration, by AMOUNT",
        Policy.REPAIR,
        f"ends it with the video; not where AMOUNT is over {CLIP_TOLERANCE_S:g} s or all of it lies after",
    ),
    "zero_length": Rule(
        "a segment ends when it starts; its true length is not known",
        Policy.QUARANTINE,
        f"widens it by {HALF_WIDTH_S:g} s to both sides, within the video",
    ),
    "overlapping": Rule(
        "segments share time, AMOUNT in all; touching is none", Policy.REPAIR, "merges those that overlap"
    ),
    "repeated_id": Rule("a kept row before it has the same id", Policy.QUARANTINE),
    "duplicate": Rule("a kept row before it has the same video, question and segments", Policy.QUARANTINE),
    "missing_video": Rule("the video file is not there; URLs are not looked up", Policy.QUARANTINE),
    "duration_absent": Rule("the annotation tells no duration; it stays null", Policy.NOTE),
}
"""In the order in which they are applied."""


def read_policies(assignments: Iterable[str]) -> dict[str, Policy]:
    """The policy of every rule: the defaults, changed by `NAME=POLICY` assignments.

    Raises:
        DataError: no such rule, or one that cannot have the policy; tells which there are.
    """
    policies = {name: rule.default for name, rule in RULES.items()}
    for assignment in assignments:
        name, _, policy = assignment.partition("=")
        if name not in RULES:
            raise DataError(f"--rule {assignment!r}: there is no rule {name!r}. The rules are {', '.join(RULES)}.")
        allowed = RULES[name].policies
        if policy not in allowed:
            why = " has no repair" if policy == Policy.REPAIR else f" cannot have policy {policy!r}"
            raise DataError(f"--rule {assignment!r}: {name}{why}. Choose one of {', '.join(allowed)}.")
        policies[name] = Policy(policy)
    return policies


@dataclass(frozen=True, slots=True)
class Finding:
    """How a row breaks a rule."""

    rule: str
    reason: str
    amount_s: float | None = None
    mended: tuple[Segment, ...] | None = None
    """The row's segments without this fault; None where it cannot be mended."""


SegmentCheck = Callable[[Sequence[Segment], float | None], Finding | None]
"""Of a row's segments and its video's duration in seconds, None where that is not known."""


def _not_finite(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    wrong = [pair for pair in segments if not all(math.isfinite(t) and abs(t) <= MAX_TIME_S for t in pair)]
    return Finding("not_finite", f"{_shown(wrong[0])} is no segment in seconds") if wrong else None


def _reversed(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    wrong = [pair for pair in segments if pair[1] < pair[0]]
    if not wrong:
        return None
    amount_s = _rounded(max(start_s - end_s for start_s, end_s in wrong))
    return Finding("reversed", f"{_shown(wrong[0])} ends before it starts", amount_s, _spans(segments))


def _unsorted(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    starts = [start_s for start_s, _ in _spans(segments)]
    if starts == sorted(starts):
        return None
    return Finding("unsorted", "segments are not in the order of their starts", None, tuple(sorted(segments)))


def _negative(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    spans = _spans(segments)
    first = min(spans)
    if first[0] >= 0:
        return None
    amount_s = _rounded(-first[0])
    can_clip = amount_s <= CLIP_TOLERANCE_S and all(end_s > 0 for _, end_s in spans)
    mended = tuple((max(start_s, 0.0), end_s) for start_s, end_s in spans) if can_clip else None
    return Finding("negative", f"{_shown(first)} starts {amount_s:g} s before the video", amount_s, mended)


def _past_end(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    spans = _spans(segments)
    last = max(spans, key=lambda span: (span[1], span[0]))
    if duration_s is None or last[1] <= duration_s:
        return None
    amount_s = _rounded(last[1] - duration_s)
    can_clip = amount_s <= CLIP_TOLERANCE_S and all(start_s < duration_s for start_s, _ in spans)
    mended = tuple((start_s, min(end_s, duration_s)) for start_s, end_s in spans) if can_clip else None
    reason = f"{_shown(last)} ends {amount_s:g} s after the video, which lasts {duration_s:g} s"
    return Finding("past_end", reason, amount_s, mended)


def _zero_length(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    wrong = [pair for pair in segments if pair[0] == pair[1]]
    if not wrong:
        return None
    latest_s = MAX_TIME_S if duration_s is None else duration_s
    mended = tuple(sorted(_widened(pair[0], latest_s) if pair[0] == pair[1] else pair for pair in segments))
    can_widen = all(start_s < end_s for start_s, end_s in mended)
    return Finding("zero_length", f"{_shown(wrong[0])} lasts no time", None, mended if can_widen else None)


def _widened(moment_s: float, latest_s: float) -> Segment:
    return max(moment_s - HALF_WIDTH_S, 0.0), min(moment_s + HALF_WIDTH_S, latest_s)


def _overlapping(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    merged: list[Segment] = []
    shared_s = 0.0
    for start_s, end_s in sorted(_spans(segments)):
        if merged and start_s < merged[-1][1]:
            last_start_s, last_end_s = merged[-1]
            shared_s += min(last_end_s, end_s) - start_s
            merged[-1] = (last_start_s, max(last_end_s, end_s))
        else:
            merged.append((start_s, end_s))
    if len(merged) == len(segments):
        return None
    amount_s = _rounded(shared_s)
    return Finding("overlapping", f"segments share {amount_s:g} s", amount_s, tuple(merged))


SEGMENT_CHECKS: Mapping[str, SegmentCheck] = {
    "not_finite": _not_finite,
    "reversed": _reversed,
    "unsorted": _unsorted,
    "negative": _negative,
    "past_end": _past_end,
    "zero_length": _zero_length,
    "overlapping": _overlapping,
}
"""In an order in which no repair makes a fault of an earlier kind. Of a later kind there is one that it can make: a
widened segment may come to overlap its neighbour."""


def find_fault(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    """The first rule that a row's segments break by an amount that counts, where nothing can be repaired."""
    findings = (check(segments, duration_s) for check in SEGMENT_CHECKS.values())
    return next((f for f in findings if f and (f.amount_s is None or f.amount_s >= NEGLIGIBLE_S)), None)


def _spans(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Reversed segments as those that they stand for."""
    return tuple((min(pair), max(pair)) for pair in segments)


def _rounded(amount_s: float) -> float:
    """Without the last digits of a subtraction, which nobody annotated."""
    return round(amount_s, 6)


def _shown(pair: Segment) -> str:
    return f"[{pair[0]:g}, {pair[1]:g}]"
