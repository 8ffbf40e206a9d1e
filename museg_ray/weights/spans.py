"""Which bytes of a weights file somebody has: spans in order that do not touch."""

from collections.abc import Iterable, Sequence

Span = tuple[int, int]
"""Bytes of the file: from, to."""


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same bytes in as few spans as can be."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(end, result[-1][1])
        elif start < end:
            result.append((start, end))
    return result


def without(spans: Sequence[Span], taken: Sequence[Span]) -> list[Span]:
    """The bytes of `spans` that are not in `taken`."""
    left, first = list[Span](), 0
    for start, end in spans:
        while first < len(taken) and taken[first][1] <= start:
            first += 1
        place = first
        while place < len(taken) and taken[place][0] < end:
            left.append((start, taken[place][0]))
            start, place = taken[place][1], place + 1
        left.append((start, end))
    return [(start, end) for start, end in left if start < end]


def common(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The bytes that are in both."""
    return without(spans, without(spans, others))
