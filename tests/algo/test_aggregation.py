from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.algo.aggregation import LOSS_MEANS, token_weights

UPDATES = st.lists(st.lists(st.integers(0, 700), min_size=1, max_size=8), min_size=1, max_size=6)
"""Tokens of each response, by group."""
MODES = sorted(LOSS_MEANS)


def nested(loss_mean: str, num_tokens: list[list[int]], max_completion_tokens: int = 100) -> list[list[float]]:
    return [group.tolist() for group in token_weights(loss_mean, num_tokens, max_completion_tokens)]


def share(loss_mean: str, num_tokens: list[list[int]]) -> float:
    """Weight of all tokens together."""
    weights = token_weights(loss_mean, num_tokens, 100)
    return sum(float(np.dot(w.astype(np.float64), n)) for w, n in zip(weights, num_tokens, strict=True))


def test_sequence_weights_by_hand() -> None:
    # 2 groups, of 2 and 3 responses; the empty one keeps its place in its group's mean.
    first, second = nested("sequence", [[4, 1], [5, 0, 2]])
    assert first == pytest.approx([1 / (2 * 2 * 4), 1 / (2 * 2 * 1)])
    assert second == pytest.approx([1 / (2 * 3 * 5), 0.0, 1 / (2 * 3 * 2)])


def test_token_weights_by_hand() -> None:
    assert nested("token", [[4, 1], [5, 0, 2]]) == [pytest.approx([1 / 12] * 2), pytest.approx([1 / 12, 0, 1 / 12])]


def test_constant_weights_by_hand() -> None:
    first, second = nested("constant", [[4, 1], [5, 0, 2]], max_completion_tokens=50)
    assert first == pytest.approx([1 / (2 * 2 * 50)] * 2)
    assert second == pytest.approx([1 / (2 * 3 * 50), 0.0, 1 / (2 * 3 * 50)])


def test_integer_arrays_will_do() -> None:
    (weights,) = token_weights("sequence", [np.array([2, 4], dtype=np.int64)], 100)
    assert weights.dtype == np.float32
    assert weights.tolist() == [0.25, 0.125]


@given(UPDATES)
def test_sequence_weights_sum_to_the_share_of_responses_with_tokens(num_tokens: list[list[int]]) -> None:
    shares = [sum(n > 0 for n in group) / len(group) for group in num_tokens]
    assert share("sequence", num_tokens) == pytest.approx(sum(shares) / len(shares), abs=1e-6)


@given(UPDATES)
def test_token_weights_sum_to_one_where_there_is_a_token(num_tokens: list[list[int]]) -> None:
    assert share("token", num_tokens) == pytest.approx(float(any(map(any, num_tokens))), abs=1e-6)


@given(UPDATES)
def test_constant_weights_sum_to_the_mean_length_over_the_limit(num_tokens: list[list[int]]) -> None:
    lengths = [sum(group) / len(group) for group in num_tokens]
    assert share("constant", num_tokens) == pytest.approx(sum(lengths) / len(lengths) / 100, rel=1e-6)


@given(UPDATES, st.sampled_from(MODES), st.randoms(use_true_random=False))
def test_the_order_of_groups_and_responses_changes_no_weight(
    num_tokens: list[list[int]], loss_mean: str, random: Random
) -> None:
    labelled = [[(n, g, i) for i, n in enumerate(group)] for g, group in enumerate(num_tokens)]
    random.shuffle(labelled)
    for group in labelled:
        random.shuffle(group)
    plain = nested(loss_mean, num_tokens)
    shuffled = nested(loss_mean, [[n for n, _, _ in group] for group in labelled])
    for group, weights in zip(labelled, shuffled, strict=True):
        assert weights == pytest.approx([plain[g][i] for _, g, i in group], rel=1e-6)


@given(UPDATES, st.sampled_from(MODES))
def test_a_response_without_tokens_weighs_nothing_and_all_others_something(
    num_tokens: list[list[int]], loss_mean: str
) -> None:
    for group, weights in zip(num_tokens, nested(loss_mean, num_tokens), strict=True):
        assert [w > 0 for w in weights] == [n > 0 for n in group]


@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 5))
def test_token_mean_equals_sequence_mean_where_all_responses_are_equally_long(length: int, b: int, g: int) -> None:
    num_tokens = [[length] * g] * b
    expected = [pytest.approx(group) for group in nested("sequence", num_tokens)]
    assert nested("token", num_tokens) == expected
    assert nested("constant", num_tokens, max_completion_tokens=length) == expected


def test_an_update_without_groups_has_no_weights() -> None:
    assert all(token_weights(mode, [], 100) == [] for mode in MODES)
