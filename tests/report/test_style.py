import itertools

import pytest

from museg_ray.report.style import spread


def test_labels_that_are_far_apart_stay_where_they_are():
    assert spread([0.9, 0.1, 0.5], gap=0.1) == [0.9, 0.1, 0.5]


def test_labels_at_one_place_move_apart_around_it():
    assert spread([0.5, 0.5], gap=0.2) == pytest.approx([0.4, 0.6])


def test_crowded_labels_keep_their_order_and_their_distance():
    moved = spread([0.50, 0.52, 0.51, 0.9], gap=0.1)
    in_order = sorted(moved)
    assert moved[0] < moved[2] < moved[1] < moved[3]
    assert all(b - a > 0.0999 for a, b in itertools.pairwise(in_order))


def test_no_labels_are_no_trouble():
    assert spread([], gap=0.1) == []
