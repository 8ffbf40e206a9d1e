import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.data.rules import HALF_WIDTH_S, RULES, SEGMENT_CHECKS, Policy, read_policies
from museg_ray.errors import DataError
from museg_ray.types import Segment

Segments = tuple[Segment, ...]


def check(
    rule: str, *segments: Segment, duration_s: float | None = None
) -> tuple[float | None, Segments | None] | None:
    """Amount and mended segments; None where the rule is kept."""
    finding = SEGMENT_CHECKS[rule](segments, duration_s)
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
    assert check("negative", (-1.5, 2)) == (1.5, None)
    assert check("negative", (-0.5, 0), (1, 2)) == (0.5, None)
    assert check("negative", (0, 1)) is None


def test_past_end() -> None:
    assert check("past_end", (1, 5), (7, 10.087), duration_s=10) == (0.087, ((1, 5), (7, 10)))
    assert check("past_end", (1, 11), duration_s=10) == (1, ((1, 10),))
    assert check("past_end", (1, 11.1), duration_s=10) == (1.1, None)
    assert check("past_end", (1, 2), (10, 10.5), duration_s=10) == (0.5, None)
    assert check("past_end", (1, 10), duration_s=10) is None
    assert check("past_end", (1, 10)) is None


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


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=6).map(tuple), st.none() | st.floats(0.1, 25))
def test_no_repair_makes_a_fault_of_an_earlier_kind(segments: Segments, duration_s: float | None) -> None:
    applied = []
    for rule, find in SEGMENT_CHECKS.items():
        finding = find(segments, duration_s)
        if finding is not None and finding.mended is None:
            return
        segments = finding.mended if finding is not None and finding.mended is not None else segments
        applied.append(rule)
        assert not any(SEGMENT_CHECKS[earlier](segments, duration_s) for earlier in applied)
