from museg_ray.report.filmstrip import num_tiles, tile_times
from museg_ray.types import Clip


def test_tiles_stand_in_the_middle_of_equal_stretches():
    assert tile_times(8.0, 4) == [1.0, 3.0, 5.0, 7.0]


def test_a_segment_between_two_tiles_draws_the_nearest_tile():
    assert tile_times(8.0, 4, [(3.5, 4.0)]) == [1.0, 3.75, 5.0, 7.0]


def test_two_short_segments_at_one_tile_each_get_one():
    times_s = tile_times(8.0, 4, [(2.2, 2.4), (3.4, 3.6)])
    assert times_s == sorted(times_s)
    assert any(2.2 <= time_s <= 2.4 for time_s in times_s)
    assert any(3.4 <= time_s <= 3.6 for time_s in times_s)


def test_more_segments_than_tiles_leave_every_tile_in_a_segment():
    segments = [(0.1, 0.2), (2.1, 2.2), (5.1, 5.2)]
    times_s = tile_times(8.0, 2, segments)
    assert len(times_s) == 2
    assert all(any(start_s <= time_s <= end_s for start_s, end_s in segments) for time_s in times_s)


def test_square_frames_fit_side_by_side_with_their_gaps(clip: Clip):
    assert num_tiles(clip, width=2.1, height=1.0) == 2
    assert num_tiles(clip, width=0.5, height=1.0) == 1
