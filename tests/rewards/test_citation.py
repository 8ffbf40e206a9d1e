import pytest

from museg_ray.rewards.citation import MAX_CITATIONS, count_citations, timestamp_reward

ANSWER = [(10.0, 20.5)]


@pytest.mark.parametrize(
    "reasoning",
    [
        "from 10.00 to 20.50",
        "from 10 to 20.5 s",
        "10.00-20.50",
        "It starts (10.0s) and ends at 20.50.",
        "t=10,20.5",
        "10.004 and 20.496",
        "010 to 20.500",
        "times:10, 20.5:",
        "from...10 to 20.5...",
        "10 10.0 10.00 then 20.5",
    ],
)
def test_times_written_as_numbers_are_cited(reasoning: str) -> None:
    assert timestamp_reward(ANSWER, reasoning, "all") == 1.0


@pytest.mark.parametrize(
    "reasoning",
    [
        "",
        "from 10 on",
        "110.0 to 120.5",
        "10.01 to 20.5",
        "1000 to 20.5",
        "10.0.1 to 20.5",
        "0.10 to 20.5",
        "\u0661\u0660 to 20.5",  # 10 in Arabic digits
        "ten to 20.5",
        "0:10 to 20.5",
        ".10 to 20.5",
        "10:20 to 20.5",
    ],
)
def test_other_numbers_do_not_cite(reasoning: str) -> None:
    assert timestamp_reward(ANSWER, reasoning, "all") == 0.0


def test_a_time_may_be_repeated_ten_times_and_no_more() -> None:
    assert timestamp_reward(ANSWER, "10 " * MAX_CITATIONS + "20.5", "all") == 1.0
    assert timestamp_reward(ANSWER, "10 " * MAX_CITATIONS + "20.5 and 10.00", "all") == 0.0


def test_every_segment_needs_its_citations() -> None:
    assert timestamp_reward([(1.0, 2.0), (2.0, 3.0)], "1, 2, 3", "all") == 1.0
    assert timestamp_reward([(1.0, 2.0), (2.0, 4.0)], "1, 2, 3", "all") == 0.0


def test_an_invalid_answer_earns_nothing() -> None:
    assert timestamp_reward([], "10 20.5", "all") == 0.0


def test_a_number_too_large_for_a_float_is_harmless() -> None:
    assert timestamp_reward(ANSWER, "9" * 400 + " 10 20.5", "all") == 1.0


def test_fraction_gives_the_share_of_times_cited() -> None:
    answer = [(1.0, 2.0), (2.0, 4.0), (5.0, 6.0)]  # five different times
    assert timestamp_reward(answer, "1 and 2", "fraction") == 2 / 5
    assert timestamp_reward(answer, "1 2 4 5 6", "fraction") == 1.0
    assert timestamp_reward(answer, "1 " * 11 + "2", "fraction") == 1 / 5
    assert timestamp_reward([], "1 2", "fraction") == 0.0


def test_citations_are_counted_by_time() -> None:
    assert count_citations([(10.0, 20.5)], "10 10.00 20.504 30") == {10.0: 2, 20.5: 1}
    assert count_citations([], "10") == {}
