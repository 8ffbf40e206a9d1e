"""Lengths and overlaps of sets of time segments, where a set stands for the time that its segments cover."""

from collections.abc import Iterable

from museg_ray.types import Segment


def union(segments: Iterable[Segment]) -> list[Segment]:
    """∪A, the same covered time as disjoint segments in seconds, sorted; overlapping and touching ones are merged."""
    merged: list[Segment] = []
    for start_s, end_s in sorted(segments):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged


def intersection(a: list[Segment], b: list[Segment]) -> list[Segment]:
    """A ∩ B, the time in seconds that both cover, as disjoint segments, sorted. Both inputs come from `union`."""
    shared: list[Segment] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start_s, end_s = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start_s < end_s:
            shared.append((start_s, end_s))
        if a[i][1] < b[j][1]:  # the one that ends first can meet nothing further
            i += 1
        else:
            j += 1
    return shared


def total_length(disjoint: Iterable[Segment]) -> float:
    """Sum of the lengths in seconds of disjoint segments."""
    return sum((end_s - start_s for start_s, end_s in disjoint), 0.0)


def iou(a: Iterable[Segment], b: Iterable[Segment]) -> float:
    """Intersection over union of the time that two sets cover, in [0, 1]; 0 when both are empty.

    |A and B| / |A or B| with A and B the unions, so that overlapping segments count once.

    Source: r_G of MUSEG (arXiv 2505.20715, section 4.2.1).
    """
    return iou_of_unions(union(a), union(b))


def iou_of_unions(a: list[Segment], b: list[Segment]) -> float:
    """`iou` of two sets that come from `union`."""
    shared_s = total_length(intersection(a, b))
    covered_s = total_length(a) + total_length(b) - shared_s
    # Rounding of the sums may take the quotient past 1 by a last digit.
    return min(1.0, shared_s / covered_s) if covered_s else 0.0


def f1_of_unions(a: list[Segment], b: list[Segment]) -> float:
    """F1 (Dice) of the time that two sets from `union` cover, in [0, 1]; 0 when both are empty.

    2 |A and B| / (|A| + |B|).

    Source: what MUSEG's published code takes for r_G, here with both sides as unions, so that it cannot pass 1.
    """
    both_s = total_length(a) + total_length(b)
    return min(1.0, 2 * total_length(intersection(a, b)) / both_s) if both_s else 0.0
