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

MIN_SHARE = 0.25
"""Of a segment that must be left where it is cut off at the video's start or end: less of it is another event."""
LENGTH_TOLERANCE = 0.02
LENGTH_TOLERANCE_S = 1.0
"""By the larger of both an annotated length may differ from that of the file: releases round and cut."""
LEAST_EVENT_S = 0.1
"""Nobody annotates less: times that would mean it are not of that unit."""
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


SHARE = f"{MIN_SHARE:.0%} (--min-share)"
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
        f"starts it at 0, however far it runs over; not where less than {SHARE} of it is left",
    ),
    "other_unit": Rule(
        "times lie after the end of the video and would fit as milliseconds or frame numbers", Policy.QUARANTINE
    ),
    "past_end": Rule(
        "a segment ends after the video's annotated duration, by AMOUNT",
        Policy.REPAIR,
        f"ends it with the video, however far it runs over; not where less than {SHARE} of it is left",
    ),
    "beyond_file": Rule(
        "a segment ends after the video file does, by AMOUNT, where the file's length is known",
        Policy.REPAIR,
        f"ends it with the file; not where less than {SHARE} of it is left",
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
    "other_ending": Rule("the video file has another ending than annotated; it is taken", Policy.NOTE),
    "ambiguous_video": Rule("there is no such file, but several that differ from it by their endings", Policy.ERROR),
    "other_length": Rule(
        f"annotated length and that of the file differ by AMOUNT, more than {LENGTH_TOLERANCE_S:g} s and "
        f"{LENGTH_TOLERANCE:.0%}",
        Policy.NOTE,
    ),
    "contradicting": Rule(
        "other kept rows ask the same of the same video, and their truths are apart",
        Policy.NOTE,
        "merges them into one query with all segments, which asks for all of them",
    ),
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What the segments of a row are held to."""

    duration_s: float | None = None
    """Of the video, as annotated."""
    file_s: float | None = None
    """Of the video file."""
    file_fps: float = 0.0
    """Frames a second of the file; 0 where not known."""
    min_share: float = MIN_SHARE


SegmentCheck = Callable[[Sequence[Segment], Limits], Finding | None]


def _not_finite(segments: Sequence[Segment], limits: Limits) -> Finding | None:
    wrong = [pair for pair in segments if not all(math.isfinite(t) and abs(t) <= MAX_TIME_S for t in pair)]
    return Finding("not_finite", f"{_shown(wrong[0])} is no segment in seconds") if wrong else None


def _reversed(segments: Sequence[Segment], limits: Limits) -> Finding | None:
    wrong = [pair for pair in segments if pair[1] < pair[0]]
    if not wrong:
        return None
    amount_s = _rounded(max(start_s - end_s for start_s, end_s in wrong))
    return Finding("reversed", f"{_shown(wrong[0])} ends before it starts", amount_s, _spans(segments))


def _unsorted(segments: Sequence[Segment], limits: Limits) -> Finding | None:
    starts = [start_s for start_s, _ in _spans(segments)]
    if starts == sorted(starts):
        return None
    return Finding("unsorted", "segments are not in the order of their starts", None, tuple(sorted(segments)))


def _negative(segments: Sequence[Segment], limits: Limits) -> Finding | None:
    spans = _spans(segments)
    first = min(spans)
    if first[0] >= 0:
        return None
    amount_s = _rounded(-first[0])
    mended = _clipped(spans, math.inf, limits.min_share)
    return Finding("negative", f"{_shown(first)} starts {amount_s:g} s before the video", amount_s, mended)


def _other_unit(segments: Sequence[Segment], limits: Limits) -> Finding | None:
    lengths_s = [length_s for length_s in (limits.duration_s, limits.file_s) if length_s is not None]
    spans = _spans(segments)
    if not lengths_s or min(spans)[0] <= max(lengths_s):
        return None
    last, longest = max(end for _, end in spans), max(end - start for start, end in spans)
    units = {"milliseconds": 1000.0, f"frame numbers at {limits.file_fps:g} a second": limits.file_fps}
    for unit, per_s in units.items():
        if per_s and last / per_s <= max(lengths_s) and longest / per_s >= LEAST_EVENT_S:
            reason = f"{_shown(segments[0])} lies after the {max(lengths_s):g} s of the video, but would fit as {unit}"
            return Finding("other_unit", reason)
    return None


def _late(rule: str, segments: Sequence[Segment], end_s: float | None, what: str, limits: Limits) -> Finding | None:
    spans = _spans(segments)
    last = max(spans, key=lambda span: (span[1], span[0]))
    if end_s is None or last[1] <= end_s:
        return None
    amount_s = _rounded(last[1] - end_s)
    reason = f"{_shown(last)} ends {amount_s:g} s after {what}, which lasts {end_s:g} s"
    return Finding(rule, reason, amount_s, _clipped(spans, end_s, limits.min_share))


def _clipped(spans: Sequence[Segment], latest_s: float, min_share: float) -> tuple[Segment, ...] | None:
    """Cut off before 0 and after `latest_s`; None where too little of one is left."""
    clipped = tuple((max(start_s, 0.0), min(end_s, latest_s)) for start_s, end_s in spans)
    for (start_s, end_s), (first_s, last_s) in zip(spans, clipped, strict=True):
        is_cut = (first_s, last_s) != (start_s, end_s)
        if is_cut and (last_s <= first_s or last_s - first_s < min_share * (end_s - start_s)):
            return None
    return clipped


def _zero_length(segments: Sequence[Segment], limits: Limits) -> Finding | None:
    wrong = [pair for pair in segments if pair[0] == pair[1]]
    if not wrong:
        return None
    known_s = [length_s for length_s in (limits.duration_s, limits.file_s) if length_s is not None]
    latest_s = min(known_s, default=MAX_TIME_S)
    mended = tuple(sorted(_widened(pair[0], latest_s) if pair[0] == pair[1] else pair for pair in segments))
    can_widen = all(start_s < end_s for start_s, end_s in mended)
    return Finding("zero_length", f"{_shown(wrong[0])} lasts no time", None, mended if can_widen else None)


def _widened(moment_s: float, latest_s: float) -> Segment:
    return max(moment_s - HALF_WIDTH_S, 0.0), min(moment_s + HALF_WIDTH_S, latest_s)


def _overlapping(segments: Sequence[Segment], limits: Limits) -> Finding | None:
    spans = _spans(segments)
    union = merged(spans)
    if len(union) == len(spans):
        return None
    shared_s = _rounded(sum(end_s - start_s for start_s, end_s in spans) - sum(e - s for s, e in union))
    return Finding("overlapping", f"segments share {shared_s:g} s", shared_s, union)


def merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Sorted, those that overlap as one; those that touch stay two."""
    union: list[Segment] = []
    for start_s, end_s in sorted(segments):
        if union and start_s < union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end_s))
        else:
            union.append((start_s, end_s))
    return tuple(union)


SEGMENT_CHECKS: Mapping[str, SegmentCheck] = {
    "not_finite": _not_finite,
    "reversed": _reversed,
    "unsorted": _unsorted,
    "negative": _negative,
    "other_unit": _other_unit,
    "past_end": lambda segments, limits: _late("past_end", segments, limits.duration_s, "the video", limits),
    "beyond_file": lambda segments, limits: _late("beyond_file", segments, limits.file_s, "its file", limits),
    "zero_length": _zero_length,
    "overlapping": _overlapping,
}
"""In an order in which no repair makes a fault of an earlier kind. Of a later kind there is one that it can make: a
widened segment may come to overlap its neighbour."""


def other_length(duration_s: float | None, file_s: float) -> Finding | None:
    """Whether an annotated length is that of another file than this."""
    if duration_s is None:
        return None
    amount_s = _rounded(abs(duration_s - file_s))
    if amount_s <= max(LENGTH_TOLERANCE_S, LENGTH_TOLERANCE * file_s):
        return None
    return Finding("other_length", f"annotated are {duration_s:g} s, the file lasts {file_s:g} s", amount_s)


def find_fault(segments: Sequence[Segment], duration_s: float | None) -> Finding | None:
    """The first rule that a row's segments break by an amount that counts, where nothing can be repaired."""
    findings = (check(segments, Limits(duration_s)) for check in SEGMENT_CHECKS.values())
    return next((f for f in findings if f and (f.amount_s is None or f.amount_s >= NEGLIGIBLE_S)), None)


def _spans(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Reversed segments as those that they stand for."""
    return tuple((min(pair), max(pair)) for pair in segments)


def _rounded(amount_s: float) -> float:
    """Without the last digits of a subtraction, which nobody annotated."""
    return round(amount_s, 6)


def _shown(pair: Segment) -> str:
    return f"[{pair[0]:g}, {pair[1]:g}]"
