"""The published code's results, to the last digits; edge cases are those of its own functions, run."""

import math

import pytest

from museg_ray.rewards.golden import GoldenCase, golden_cases
from museg_ray.rewards.reference import reference_rewards
from museg_ray.types import Segment

G = [(10.0, 20.0)]
M = [(10.0, 20.0), (30.0, 40.0), (50.0, 60.0)]
CITED = "at 10.00 20.00 5.00 15.00 25.00 30.00 40.00 50.00 60.00 90.00 100.00 0.00"


@pytest.mark.parametrize("start", range(0, 1500, 100))
def test_every_golden_case_is_reproduced(start: int) -> None:
    cases: list[GoldenCase] = golden_cases()[start : start + 100]
    assert len(cases) == 100
    for case in cases:
        rewards = reference_rewards(case.response, case.truth)._asdict()
        assert rewards.keys() == case.reference.keys()
        for name, expected in case.reference.items():
            assert rewards[name] == pytest.approx(expected, abs=1e-9, rel=0), (name, case.response)


@pytest.mark.parametrize(
    ("answer", "truth", "global_f1", "local_ngiou"),
    [
        ("", G, 0.0, 5.5e-9),
        ("20-10", G, 0.0, 0.0),
        ("10-10", G, 0.0, 0.0),
        ("nan-nan", G, 0.0, 0.0),
        ("0.00-inf", G, 0.0, math.nan),
        ("10.00-20.00-30.00", G, 1.0, 1.0),
        ("1e1-2e1", G, 1.0, 1.0),
        ("-5.00-10.00", G, 0.0, 0.0),
        ("15-25", G, 0.5, 2 / 3),
        ("10-30", G, 2 / 3, 0.75),
        ("20-30", G, 0.0, 0.5),
        ("90-100", G, 0.0, 1 / 9),
        ("10-20 1000000000-1000000001", G, 0.952, 1.0),
        ("50-60 30-40 10-20", M, 1.0, 0.467),
        ("10-20", M, 0.5, 1 / 3),
        ("10-60", M, 0.75, 0.2),
        ("30-40 50-60", M, 0.8, 0.222),
        ("13-38", [(38.0, 13.0)], 0.0, 0.0),
        ("0-10", [(38.0, 13.0)], 0.0, -0.577),
        ("20-21", [(38.0, 13.0)], 0.0, -12.0),
        ("10-20", [(15.0, 15.0)], 0.0, 0.5),
    ],
)
def test_edge_cases_of_matching(answer: str, truth: list[Segment], global_f1: float, local_ngiou: float) -> None:
    rewards = reference_rewards(f"<answer>{answer}</answer>", truth)
    assert rewards.global_f1 == pytest.approx(global_f1, abs=1e-3)
    assert rewards.local_ngiou_unsorted == pytest.approx(local_ngiou, abs=1e-3, nan_ok=True)
    assert rewards.segment_matching_sum == pytest.approx(global_f1 + local_ngiou, abs=2e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("reasoning", "answer", "stage_1", "stage_2"),
    [
        (CITED, "10.00-20.00", 1.0, 1.0),
        ("from 10 to 20", "10-20", 0.6, 1.0),  # the text of the float is looked for, and 10 is no 10.0
        ("10.0 20.0 " * 10, "10-20", 1.0, 1.0),
        ("10.0 20.0 " * 11, "10-20", 0.6, 1.0),
        ("1000 and 2000", "10-20", 1.0, 1.0),  # the point is a pattern
        ("110.0 and 120.0", "10-20", 1.0, 1.0),  # inside longer numbers
        ("nothing", "", 1.0, 1.0),
        (CITED, "20-10", 1.0, 1.0),
        (CITED, "10.00 - 20.00", 0.2, 0.2),
        (CITED, "10.00s-20.00s", 0.2, 0.2),
        (CITED, "00:10-00:20", 0.2, 0.2),
    ],
)
def test_edge_cases_of_the_format(reasoning: str, answer: str, stage_1: float, stage_2: float) -> None:
    rewards = reference_rewards(f"<think>{reasoning}</think><answer>{answer}</answer>", G)
    assert (rewards.format_with_timestamp, rewards.format_without_timestamp) == (stage_1, stage_2)


@pytest.mark.parametrize("text", ["so <think>a</think><answer>10-20</answer>", "<answer>10-20</answer>"])
def test_matching_needs_only_the_answer_and_the_format_all_of_it(text: str) -> None:
    assert reference_rewards(text, G) == pytest.approx((0.0, 0.0, 1.0, 1.0, 2.0), abs=1e-6)


def test_overlapping_true_segments_earn_more_than_one() -> None:
    assert reference_rewards("<answer>0-10 5-15</answer>", [(0.0, 10.0), (5.0, 15.0)]).global_f1 > 1.1
