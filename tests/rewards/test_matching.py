import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.rewards.matching import Match, global_reward, local_reward, match_segments, ngiou
from museg_ray.types import Segment

times_s = st.floats(0, 1e6)
segments = st.tuples(times_s, times_s).filter(lambda pair: pair[0] < pair[1])
sorted_lists = st.lists(segments, min_size=1, max_size=4).map(sorted)


def ngiou_by_the_formula(a: Segment, b: Segment) -> float:
    """Reference: |I|/|U| - (|C| - |U|)/|C|, normalised."""
    shared_s = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    covered_s = (a[1] - a[0]) + (b[1] - b[0]) - shared_s
    enclosing_s = max(a[1], b[1]) - min(a[0], b[0])
    return (1 + shared_s / covered_s - (enclosing_s - covered_s) / enclosing_s) / 2


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ((10.0, 20.0), 1.0),
        ((15.0, 25.0), 2 / 3),
        ((10.0, 30.0), 0.75),
        ((0.0, 100.0), 0.55),
        ((20.0, 30.0), 0.5),  # touching: GIoU 0
        ((90.0, 100.0), 1 / 9),
    ],
)
def test_ngiou_of_known_cases(predicted: Segment, expected: float) -> None:
    assert ngiou(predicted, (10.0, 20.0)) == pytest.approx(expected)


@given(segments, segments)
def test_ngiou_is_symmetric_and_in_range(a: Segment, b: Segment) -> None:
    assert 0.0 <= ngiou(a, b) <= 1.0
    assert ngiou(a, b) == ngiou(b, a)


@given(segments)
def test_ngiou_of_equal_segments_is_one(a: Segment) -> None:
    assert ngiou(a, a) == 1.0


@given(*[st.tuples(st.integers(0, 500), st.integers(1, 500)).map(lambda p: (p[0] / 4, (p[0] + p[1]) / 4))] * 2)
def test_ngiou_agrees_with_its_formula(a: Segment, b: Segment) -> None:
    assert ngiou(a, b) == pytest.approx(ngiou_by_the_formula(a, b))


def test_ngiou_stays_finite_for_the_shortest_and_the_longest_segments() -> None:
    assert ngiou((0.0, 5e-324), (1e308, 1.7e308)) == pytest.approx((1 - 1e308 / 1.7e308) / 2)
    assert ngiou((0.0, 1.7e308), (0.0, 1.7e308)) == 1.0


def test_unpaired_segments_give_zero() -> None:
    truth = [(10.0, 20.0), (30.0, 40.0), (50.0, 60.0)]
    assert local_reward([], truth, "sequential") == 0.0
    assert local_reward(truth[:1], truth, "sequential") == pytest.approx(1 / 3)
    assert local_reward([*truth, (70.0, 80.0)], truth, "sequential") == pytest.approx(3 / 4)


def test_sequential_pairs_by_position_and_maximum_by_fit() -> None:
    truth = [(10.0, 20.0), (30.0, 40.0)]
    predicted = [(0.0, 5.0), (10.0, 20.0), (30.0, 40.0)]
    first, second = ngiou((0.0, 5.0), (10.0, 20.0)), ngiou((10.0, 20.0), (30.0, 40.0))
    assert local_reward(predicted, truth, "sequential") == pytest.approx((first + second) / 3)
    assert local_reward(predicted, truth, "maximum") == pytest.approx(2 / 3)


@given(sorted_lists, sorted_lists)
def test_maximum_finds_the_best_of_all_assignments(predicted: list[Segment], truth: list[Segment]) -> None:
    short, long = sorted((predicted, truth), key=len)
    best = max(
        sum(ngiou(a, b) for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    )
    assert local_reward(predicted, truth, "maximum") == pytest.approx(best / len(long))


@given(sorted_lists, sorted_lists)
def test_maximum_is_never_below_sequential(predicted: list[Segment], truth: list[Segment]) -> None:
    sequential = local_reward(predicted, truth, "sequential")
    assert 0.0 <= sequential <= local_reward(predicted, truth, "maximum") + 1e-12 <= 1.0 + 1e-12


def test_matches_name_their_segments() -> None:
    truth = [(10.0, 20.0), (30.0, 40.0)]
    predicted = [(0.0, 5.0), (10.0, 20.0), (30.0, 40.0)]
    assert [(m.predicted, m.true) for m in match_segments(predicted, truth, "sequential")] == [(0, 0), (1, 1)]
    assert match_segments(predicted, truth, "maximum") == [Match(1, 0, 1.0), Match(2, 1, 1.0)]
    assert match_segments([], truth, "maximum") == match_segments([], truth, "sequential") == []


def test_the_global_reward_is_iou_or_f1_of_covered_time() -> None:
    assert global_reward([(15.0, 25.0)], [(10.0, 20.0)], "iou") == pytest.approx(1 / 3)
    assert global_reward([(15.0, 25.0)], [(10.0, 20.0)], "f1") == pytest.approx(1 / 2)
