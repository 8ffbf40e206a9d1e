import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.algo.advantages import group_advantages, rloo_advantages

groups = st.lists(st.floats(0, 3, width=32), min_size=2, max_size=16).map(np.float32)


def test_advantages_by_hand() -> None:
    # Mean 2, deviations -1 0 1, unbiased standard deviation 1.
    advantages = group_advantages(np.float32([1.0, 2.0, 3.0]), scale=True)
    assert advantages == pytest.approx(np.array([-1.0, 0.0, 1.0]) / 1.0001)
    assert advantages.dtype == np.float32


def test_unscaled_advantages_only_lose_the_mean() -> None:
    assert group_advantages(np.float32([0.5, 1.0, 3.0]), scale=False) == pytest.approx([-1.0, -0.5, 1.5])


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.3])
def test_equal_rewards_give_exactly_zero(reward: float, scale: bool) -> None:
    assert group_advantages(np.full(7, reward, dtype=np.float32), scale).tolist() == [0.0] * 7


def test_rloo_by_hand() -> None:
    # The others' means: (1 + 3 + 2) / 3 = 2, (0 + 3 + 2) / 3 = 5/3, (0 + 1 + 2) / 3 = 1, (0 + 1 + 3) / 3 = 4/3.
    advantages = rloo_advantages(np.float32([0.0, 1.0, 3.0, 2.0]))
    assert advantages == pytest.approx([0 - 2, 1 - 5 / 3, 3 - 1, 2 - 4 / 3])
    assert advantages.dtype == np.float32
    assert rloo_advantages(np.full(7, 0.1, dtype=np.float32)).tolist() == [0.0] * 7


def test_a_single_response_has_no_advantage() -> None:
    with pytest.raises(AssertionError, match="at least 2"):
        group_advantages(np.float32([1.0]), scale=True)
    with pytest.raises(AssertionError, match="at least 2"):
        rloo_advantages(np.float32([]))


@given(groups)
def test_rloo_leaves_one_out_sums_to_zero_and_is_the_unscaled_advantage_times_a_factor(totals: np.ndarray) -> None:
    advantages, size = rloo_advantages(totals), len(totals)
    others = [np.delete(totals.astype(np.float64), index).mean() for index in range(size)]
    assert advantages == pytest.approx(totals - others, abs=1e-5)
    assert advantages.sum() == pytest.approx(0.0, abs=1e-4)
    assert advantages == pytest.approx(group_advantages(totals, scale=False) * size / (size - 1), abs=1e-5)


@given(groups)
def test_advantages_are_finite_centred_and_in_the_order_of_the_rewards(totals: np.ndarray) -> None:
    advantages = group_advantages(totals, scale=True)
    assert np.all(np.isfinite(advantages))
    assert advantages.sum() == pytest.approx(0.0, abs=1e-4)
    assert np.all(np.diff(advantages[np.argsort(totals)]) >= 0.0)


@given(groups)
def test_a_shift_of_all_rewards_changes_no_advantage(totals: np.ndarray) -> None:
    shifted = group_advantages(totals.astype(np.float64) + 1.0, scale=True)
    assert shifted == pytest.approx(group_advantages(totals, scale=True), abs=1e-5)
