import pytest

from museg_ray.report.timeline_text import Track, text_timeline
from museg_ray.types import Segment


def lines(*tracks: list[Segment], width: int = 20) -> list[str]:
    named = [Track(f"t{index}", segments, "cyan") for index, segments in enumerate(tracks)]
    return text_timeline(named, width).plain.splitlines()


def test_segments_are_bars_at_their_times() -> None:
    first, second, _ = lines([(0.0, 5.0), (15.0, 20.0)], [(10.0, 11.0)])
    assert first == "t0  █████··········█████"
    assert second == "t1  ··········█·········"


def test_the_shortest_segment_is_seen_also_at_the_very_end() -> None:
    first, _ = lines([(0.0, 0.001), (9.999, 10.0)])
    assert first == "t0  █··················█"


@pytest.mark.parametrize("last_s", [0.004, 0.9, 7.0, 30.0, 259.0, 1661.5, 1e9, 1e300])
def test_the_axis_has_round_seconds_in_order(last_s: float) -> None:
    bars, axis = lines([(0.0, last_s)], [])[0::2]
    assert axis.lstrip().startswith("0 s")
    ticks = [float(tick) for tick in axis.replace("0 s", "0", 1).split()]
    assert ticks == sorted(set(ticks)) and len(ticks) >= 2 and ticks[-1] <= last_s * 1.001
    assert len(bars) == 24


def test_bars_and_dots_have_their_styles() -> None:
    text = text_timeline([Track("a", [(0.0, 1.0)], "cyan")], 10)
    assert {span.style for span in text.spans} >= {"cyan", "dim"}
