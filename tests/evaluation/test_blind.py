import pytest

from museg_ray.evaluation.blind import GRID_STEPS, blind_baseline
from museg_ray.rewards.segments import iou
from museg_ray.types import GroundingQuery, Segment


def query(*segments: Segment, duration_s: float | None = 100.0) -> GroundingQuery:
    return GroundingQuery("train/0", "video.mp4", "the red circle", segments, duration_s)


def test_a_fixed_time_is_found_in_seconds() -> None:
    train = [query((10.0, 20.0), duration_s=20.0), query((10.0, 20.0), duration_s=100.0)]
    blind, scores = blind_baseline(train, heldout=[query((10.0, 20.0), duration_s=50.0)])
    assert (blind.unit, blind.start, blind.end) == ("seconds", 10.0, 20.0)
    assert blind.train_miou == pytest.approx(1.0)
    assert scores.miou == scores.r1_at_05 == scores.count_accuracy == scores.format_rate == 1.0


def test_a_fixed_share_of_the_duration_is_found_as_a_share() -> None:
    train = [query((5.0, 10.0), duration_s=20.0), query((25.0, 50.0), duration_s=100.0)]
    blind, scores = blind_baseline(train, heldout=[query((100.0, 200.0), duration_s=400.0)])
    assert (blind.unit, blind.start, blind.end) == ("share", 0.25, 0.5)
    assert scores.miou == pytest.approx(1.0)


def test_without_all_durations_the_answer_is_in_seconds() -> None:
    train = [query((5.0, 10.0), duration_s=20.0), query((25.0, 50.0), duration_s=100.0)]
    blind, _ = blind_baseline(train, heldout=[query((1.0, 2.0), duration_s=None)])
    assert blind.unit == "seconds"


def test_no_interval_on_the_grid_is_better() -> None:
    train = [query((1.0, 4.0), (6.0, 7.0)), query((3.0, 5.0)), query((8.0, 20.0), (9.0, 11.0)), query((2.0, 6.0))]
    blind, _ = blind_baseline(train, heldout=[query((1.0, 2.0), duration_s=None)])
    steps = [20.0 * step / GRID_STEPS for step in range(GRID_STEPS + 1)]
    best = max(
        sum(iou([(start, end)], q.segments) for q in train) / len(train)
        for start in steps[::2]
        for end in steps[::2]
        if start < end
    )
    chosen = sum(iou([(blind.start, blind.end)], q.segments) for q in train) / len(train)
    assert blind.train_miou == pytest.approx(chosen)
    assert chosen >= best - 1e-9


def test_scores_are_those_of_the_interval_on_the_heldout_queries() -> None:
    _, scores = blind_baseline([query((10.0, 20.0))], heldout=[query((10.0, 15.0)), query((0.0, 5.0), (10.0, 20.0))])
    assert scores.miou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores.r1_at_05 == 1.0
    assert scores.multi_f1_at_05 == pytest.approx(2 / 3)
    assert scores.count_accuracy == 1 / 2
