from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.rewards.segments import f1_of_unions, intersection, iou, total_length, union
from museg_ray.types import Segment

# Multiples of 1/8 s, so that sums and differences are exact.
eighths = st.integers(0, 400).map(lambda n: n / 8)
segments = st.tuples(eighths, eighths).filter(lambda pair: pair[0] < pair[1])
segment_lists = st.lists(segments, max_size=6)


def covered_eighths(covering: list[Segment]) -> set[int]:
    """Reference: the eighths of a second that the segments cover, one by one."""
    return {n for start_s, end_s in covering for n in range(int(start_s * 8), int(end_s * 8))}


def test_overlapping_and_touching_segments_merge() -> None:
    assert union([(5.0, 6.0), (1.0, 3.0), (2.0, 4.0), (4.0, 4.5)]) == [(1.0, 4.5), (5.0, 6.0)]


def test_a_segment_inside_another_adds_nothing() -> None:
    assert union([(0.0, 10.0), (2.0, 3.0)]) == [(0.0, 10.0)]


def test_the_union_of_nothing_is_empty() -> None:
    assert union([]) == []
    assert total_length([]) == 0.0


def test_intersection_keeps_only_shared_time() -> None:
    assert intersection([(0.0, 4.0), (6.0, 9.0)], [(3.0, 7.0), (8.0, 8.5)]) == [(3.0, 4.0), (6.0, 7.0), (8.0, 8.5)]


def test_touching_segments_share_no_time() -> None:
    assert intersection([(0.0, 1.0)], [(1.0, 2.0)]) == []


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ([(10.0, 20.0)], 1.0),
        ([(15.0, 25.0)], 1 / 3),
        ([(10.0, 30.0)], 0.5),
        ([(20.0, 30.0)], 0.0),
        ([(10.0, 15.0), (15.0, 20.0)], 1.0),  # the same time in two pieces
        ([(10.0, 20.0), (10.0, 20.0)], 1.0),  # the same time twice
        ([], 0.0),
    ],
)
def test_iou_of_known_cases(predicted: list[Segment], expected: float) -> None:
    assert iou(predicted, [(10.0, 20.0)]) == pytest.approx(expected)


def test_iou_of_nothing_with_nothing_is_zero() -> None:
    assert iou([], []) == 0.0


@given(segment_lists, segment_lists)
def test_iou_agrees_with_counting_covered_eighths(a: list[Segment], b: list[Segment]) -> None:
    covered_a, covered_b = covered_eighths(a), covered_eighths(b)
    expected = len(covered_a & covered_b) / len(covered_a | covered_b) if covered_a | covered_b else 0.0
    assert iou(a, b) == expected
    assert iou(b, a) == expected


@given(segment_lists)
def test_union_is_disjoint_sorted_and_covers_the_same_time(covering: list[Segment]) -> None:
    merged = union(covering)
    assert all(left[1] < right[0] for left, right in pairwise(merged))
    assert covered_eighths(merged) == covered_eighths(covering)
    assert total_length(merged) == len(covered_eighths(covering)) / 8


@given(segment_lists.filter(bool))
def test_any_segments_have_iou_one_with_themselves(covering: list[Segment]) -> None:
    assert iou(covering, covering[::-1]) == 1.0


@given(segment_lists, segment_lists)
def test_f1_is_two_iou_over_one_plus_iou(a: list[Segment], b: list[Segment]) -> None:
    overlap = iou(a, b)
    f1 = f1_of_unions(union(a), union(b))
    assert f1 == pytest.approx(2 * overlap / (1 + overlap))
    assert f1 == f1_of_unions(union(b), union(a))


def test_f1_of_nothing_with_nothing_is_zero() -> None:
    assert f1_of_unions([], []) == 0.0
