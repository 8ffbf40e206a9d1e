import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.evaluation.metrics import GroundingAnswer, grounding_scores, segment_f1
from museg_ray.rewards.segments import iou

halves = st.integers(0, 40).map(lambda n: n / 2)
segments = st.tuples(halves, halves).filter(lambda pair: pair[0] < pair[1])
answers = st.builds(
    GroundingAnswer,
    predicted=st.lists(segments, max_size=4).map(tuple),
    truth=st.lists(segments, min_size=1, max_size=4).map(tuple),
    well_formed=st.booleans(),
)

PERFECT_SINGLE = GroundingAnswer(((1.0, 2.0),), ((1.0, 2.0),), True)
PERFECT_MULTI = GroundingAnswer(((1.0, 2.0), (5.0, 7.0)), ((1.0, 2.0), (5.0, 7.0)), True)
INVALID = GroundingAnswer((), ((1.0, 2.0),), False)


def test_perfect_answers_score_one_everywhere() -> None:
    assert set(grounding_scores([PERFECT_SINGLE, PERFECT_MULTI]).as_dict().values()) == {1.0}


def test_metrics_are_means_over_their_own_queries() -> None:
    half_found = GroundingAnswer(((1.0, 2.0),), ((1.0, 2.0), (5.0, 6.0)), True)
    scores = grounding_scores([PERFECT_SINGLE, INVALID, PERFECT_MULTI, half_found]).as_dict()
    assert scores == pytest.approx(
        {
            "miou": (1 + 0 + 1 + 1 / 2) / 4,
            "r1_at_05": 1 / 2,
            "multi_f1_at_05": (1 + 2 / 3) / 2,
            "count_accuracy": 2 / 4,
            "format_rate": 3 / 4,
        }
    )


def test_a_metric_without_its_kind_of_query_is_left_out() -> None:
    assert grounding_scores([PERFECT_SINGLE]).multi_f1_at_05 is None
    assert "multi_f1_at_05" not in grounding_scores([PERFECT_SINGLE]).as_dict()
    assert "r1_at_05" not in grounding_scores([PERFECT_MULTI]).as_dict()


def test_recall_looks_at_the_first_segment_only() -> None:
    late = GroundingAnswer(((5.0, 6.0), (1.0, 2.0)), ((1.0, 2.0),), True)
    assert grounding_scores([late]).r1_at_05 == 0.0


def test_iou_of_exactly_one_half_is_a_hit() -> None:
    assert grounding_scores([GroundingAnswer(((0.0, 1.0),), ((0.0, 2.0),), True)]).r1_at_05 == 1.0


def test_a_segment_predicted_twice_is_found_once() -> None:
    assert segment_f1([(1.0, 2.0), (1.0, 2.0)], [(1.0, 2.0)]) == pytest.approx(2 / 3)
    assert segment_f1([(1.0, 2.0), (1.0, 2.0)], [(1.0, 2.0), (5.0, 6.0)]) == pytest.approx(2 / 4)


def test_f1_pairs_as_many_segments_as_possible() -> None:
    # The first prediction fits both true segments, the second only the first one.
    predicted, truth = [(0.0, 10.0), (0.0, 5.0)], [(0.0, 7.0), (1.0, 10.0)]
    assert segment_f1(predicted, truth) == 1.0


def test_f1_without_predictions_is_zero() -> None:
    assert segment_f1([], [(1.0, 2.0), (5.0, 6.0)]) == 0.0


@given(answers)
def test_f1_agrees_with_trying_every_matching(answer: GroundingAnswer) -> None:
    short, long = sorted((answer.predicted, answer.truth), key=len)
    most_pairs = max(
        sum(iou([a], [b]) >= 0.5 for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    )
    assert segment_f1(answer.predicted, answer.truth) == pytest.approx(2 * most_pairs / (len(short) + len(long)))


@given(st.lists(answers, min_size=1, max_size=5))
def test_every_metric_is_in_range(collected: list[GroundingAnswer]) -> None:
    assert all(0.0 <= value <= 1.0 for value in grounding_scores(collected).as_dict().values())
