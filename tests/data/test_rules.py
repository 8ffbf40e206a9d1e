import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.data.rules import HALF_WIDTH_S, RULES, SEGMENT_CHECKS, Limits, Policy, read_policies
from museg_ray.errors import DataError
from museg_ray.types import Segment

Segments = tuple[Segment, ...]


def check(rule: str, *segments: Segment, **limits: float) -> tuple[float | None, Segments | None] | None:
    """Amount and mended segments; None where the rule is kept."""
    finding = SEGMENT_CHECKS[rule](segments, Limits(**limits))
    assert finding is None or finding.rule == rule
    return finding and (finding.amount_s, finding.mended)


def test_every_rule_has_a_meaning_and_a_default_that_it_can_have() -> None:
    assert set(SEGMENT_CHECKS) <= set(RULES)
    assert [name for name in RULES if name in SEGMENT_CHECKS] == list(SEGMENT_CHECKS)
    for rule in RULES.values():
        assert rule.meaning
        assert rule.default in rule.policies
        assert (Policy.REPAIR in rule.policies) == bool(rule.repair)


@pytest.mark.parametrize("pair", [(math.nan, 1.0), (0.0, math.inf), (-math.inf, 1.0), (0.0, 1.1e12)])
def test_not_finite(pair: Segment) -> None:
    assert check("not_finite", (0.0, 1.0), pair) == (None, None)
    assert check("not_finite", (0.0, 1e12)) is None


def test_reversed() -> None:
    assert check("reversed", (0, 1), (38, 13)) == (25, ((0, 1), (13, 38)))
    assert check("reversed", (1, 1), (1, 2)) is None


def test_negative() -> None:
    assert check("negative", (-0.5, 2), (-0.2, 1)) == (0.5, ((0, 2), (0, 1)))
    assert check("negative", (-6, 2)) == (6, ((0, 2),)), "a quarter of it is left"
    assert check("negative", (-6.1, 2)) == (6.1, None)
    assert check("negative", (-0.5, 0), (1, 2)) == (0.5, None)
    assert check("negative", (0, 1)) is None


@pytest.mark.parametrize(("rule", "limit"), [("past_end", "duration_s"), ("beyond_file", "file_s")])
def test_a_segment_that_runs_over_an_end_is_cut_unless_too_little_is_left(rule: str, limit: str) -> None:
    assert check(rule, (1, 5), (7, 10.087), **{limit: 10}) == (0.087, ((1, 5), (7, 10)))
    assert check(rule, (9, 13), **{limit: 10}) == (3, ((9, 10),)), "a quarter of it is left"
    assert check(rule, (9, 13.1), **{limit: 10}) == (3.1, None)
    assert check(rule, (9, 13.1), **{limit: 10, "min_share": 0.2}) == (3.1, ((9, 10),))
    assert check(rule, (1, 2), (10, 10.5), **{limit: 10, "min_share": 0}) == (0.5, None), "nothing of it is left"
    assert check(rule, (1, 10), **{limit: 10}) is None
    assert check(rule, (1, 10)) is None


def test_other_unit() -> None:
    assert check("other_unit", (1230, 3000), file_s=5) == (None, None)
    assert check("other_unit", (1230, 3000), duration_s=5) == (None, None)
    assert check("other_unit", (20, 28), file_s=5, file_fps=10) == (None, None)
    assert check("other_unit", (20, 28), file_s=5, file_fps=10, duration_s=28.8) is None, "the annotation is consistent"
    assert check("other_unit", (1, 2), (1230, 3000), file_s=5) is None, "one of them lies in the video"
    assert check("other_unit", (5100, 5200), file_s=5) is None, "no unit makes it fit"
    assert check("other_unit", (20, 28), file_s=5) is None, "nobody annotates 8 ms"
    assert check("other_unit", (1230, 3000)) is None


def test_zero_length() -> None:
    assert check("zero_length", (5, 5), (1, 2)) == (None, ((1, 2), (4.75, 5.25)))
    assert check("zero_length", (0, 0), duration_s=0.1) == (None, ((0, 0.1),))
    assert check("zero_length", (5, 5), duration_s=5) == (None, ((4.75, 5),))
    assert check("zero_length", (6, 6), duration_s=5) == (None, None)
    assert check("zero_length", (5, 5.01)) is None
    assert HALF_WIDTH_S == 0.25


def test_unsorted() -> None:
    assert check("unsorted", (5, 6), (1, 2)) == (None, ((1, 2), (5, 6)))
    assert check("unsorted", (1, 2), (1, 1.5)) is None


def test_overlapping() -> None:
    assert check("overlapping", (1, 5), (3, 6), (8, 9)) == (2, ((1, 6), (8, 9)))
    assert check("overlapping", (1, 9), (2, 3), (2.5, 4)) == (2.5, ((1, 9),))
    assert check("overlapping", (1, 2), (2, 3)) is None, "touching is not overlapping"


def test_defaults_and_assignments() -> None:
    assert read_policies([]) == {name: rule.default for name, rule in RULES.items()}
    policies = read_policies(["zero_length=repair", "past_end=error", "zero_length=quarantine"])
    assert (policies["zero_length"], policies["past_end"]) == (Policy.QUARANTINE, Policy.ERROR)


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("revesed=repair", "no rule 'revesed'. The rules are malformed, "),
        ("reversed", "reversed cannot have policy ''. Choose one of repair, quarantine, error"),
        ("reversed=drop", "reversed cannot have policy 'drop'"),
        ("reversed=note", "reversed cannot have policy 'note'"),
        *((f"{name}=repair", f"{name} has no repair") for name, rule in RULES.items() if not rule.repair),
    ],
)
def test_an_assignment_that_cannot_be_is_refused(assignment: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint.replace(".", r"\.")):
        read_policies([assignment])


TIMES = st.floats(-5, 30) | st.integers(-3, 25).map(float) | st.just(20.25)


LENGTHS = st.none() | st.floats(0.1, 25)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=6).map(tuple), st.builds(Limits, LENGTHS, LENGTHS))
def test_no_repair_makes_a_fault_of_an_earlier_kind(segments: Segments, limits: Limits) -> None:
    applied = []
    for rule, find in SEGMENT_CHECKS.items():
        finding = find(segments, limits)
        if finding is not None and finding.mended is None:
            return
        segments = finding.mended if finding is not None and finding.mended is not None else segments
        applied.append(rule)
        assert not any(SEGMENT_CHECKS[earlier](segments, limits) for earlier in applied)
