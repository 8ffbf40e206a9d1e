from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from museg_ray.data.contradictions import settle
from museg_ray.data.importers.rows import ImportedRow, NotGrounding
from museg_ray.data.rules import RULES, Policy, read_policies
from museg_ray.data.validate import Repair, Validator, Verdict
from museg_ray.data.videos import FileLength, VideoFiles
from museg_ray.errors import DataError
from museg_ray.types import GroundingQuery, Segment


def row(*segments: Segment, number: int = 1, duration_s: float | None = 20.0, question: str = "q") -> ImportedRow:
    query = GroundingQuery(f"a/{number}", "v/a.mp4", question, segments, duration_s)
    return ImportedRow("folder/a.jsonl", number, "the raw row", query)


BROKEN = {
    "malformed": ImportedRow("folder/a.jsonl", 1, "{", DataError("not valid JSON")),
    "not_grounding": ImportedRow("folder/a.jsonl", 1, "{}", NotGrounding("task 'rar'")),
    "not_finite": row((0, float("nan"))),
    "reversed": row((5, 3)),
    "unsorted": row((5, 6), (1, 2)),
    "negative": row((-0.5, 3)),
    "other_unit": row((5000, 6000)),
    "past_end": row((5, 20.5)),
    "beyond_file": row((5, 20.5), duration_s=21.0),
    "zero_length": row((5, 5)),
    "overlapping": row((1, 3), (2, 4)),
    "repeated_id": row((7, 8), question="another"),
    "duplicate": row((1, 2), number=2),
    "missing_video": row((5, 6), number=3),
    "other_ending": row((5, 6), number=3),
    "ambiguous_video": row((5, 6), number=3),
    "other_length": row((5, 6), number=3, duration_s=21.5),
    "contradicting": row((5, 6), number=3),
    "duration_absent": row((5, 6), number=3, duration_s=None),
}
"""A row that breaks this rule and no other, after `row((1, 2))`."""
MENDED: dict[str, tuple[Segment, ...]] = {
    "reversed": ((3, 5),),
    "unsorted": ((1, 2), (5, 6)),
    "negative": ((0, 3),),
    "past_end": ((5, 20),),
    "beyond_file": ((5, 20),),
    "zero_length": ((4.75, 5.25),),
    "overlapping": ((1, 4),),
}
NOTED = [name for name, rule in RULES.items() if rule.default is Policy.NOTE]


class Files(VideoFiles):
    """Files of 20 s."""

    def __init__(self, *names: str) -> None:
        super().__init__(lambda path: FileLength(20.0, 10.0))
        self.names = names

    def find(self, video: str) -> list[str]:
        return [str(Path(video).with_name(name)) for name in self.names]


FILES = {
    "beyond_file": Files("a.mp4"),
    "missing_video": Files(),
    "other_ending": Files("a.mkv"),
    "ambiguous_video": Files("a.mkv", "a.avi"),
    "other_length": Files("a.mp4"),
}


def judged(rule: str, policy: Policy) -> Verdict:
    earlier = [row((1, 2))] if rule in ("repeated_id", "duplicate", "contradicting") else []
    validator = Validator(read_policies([f"{rule}={policy}"]), FILES.get(rule))
    kept = [validator.judge(row) for row in earlier]
    assert all(verdict.query for verdict in kept)
    return settle([*kept, validator.judge(BROKEN[rule])], policy if rule == "contradicting" else Policy.NOTE)[-1]


def test_every_rule_is_tested() -> None:
    assert list(BROKEN) == list(RULES)
    assert {*MENDED, "contradicting"} == {name for name, rule in RULES.items() if rule.repair}


@pytest.mark.parametrize("rule", RULES)
def test_quarantine(rule: str) -> None:
    verdict = judged(rule, Policy.QUARANTINE)
    assert verdict.query is None
    assert [finding.rule for finding in verdict.findings] == [rule]
    assert verdict.reason.startswith(f"{rule}: ")
    assert verdict.row == BROKEN[rule]
    assert verdict.repairs == ()


@pytest.mark.parametrize("rule", RULES)
def test_error(rule: str) -> None:
    with pytest.raises(DataError, match=rf"^folder/a\.jsonl:{BROKEN[rule].number}: {rule}: .*--rule {rule}=quarantine"):
        judged(rule, Policy.ERROR)


@pytest.mark.parametrize("rule", MENDED)
def test_repair(rule: str) -> None:
    verdict = judged(rule, Policy.REPAIR)
    assert verdict.query is not None
    assert verdict.query.segments == MENDED[rule]
    original = BROKEN[rule].parsed
    assert isinstance(original, GroundingQuery)
    assert verdict.repairs == (Repair(rule, original.segments, MENDED[rule], verdict.findings[0].amount_s),)
    assert verdict.reason == ""


@pytest.mark.parametrize("rule", NOTED)
def test_note(rule: str) -> None:
    verdict = judged(rule, Policy.NOTE)
    assert verdict.query is not None
    ending = ".mkv" if rule == "other_ending" else ".mp4"
    assert replace(verdict.query, video="v/a.mp4") == BROKEN[rule].parsed and verdict.query.video == f"v/a{ending}"
    assert [finding.rule for finding in verdict.findings] == [rule]


def contradicting(policy: Policy, *rows: ImportedRow) -> list[Verdict]:
    validator = Validator(read_policies([]), None)
    return settle([validator.judge(row) for row in rows], policy)


def test_contradicting_rows_become_one_query_with_all_their_segments() -> None:
    rows = [row((8, 9)), row((1, 2), number=2), row((1, 3), number=3), row((1, 2), number=4, question="another")]
    one, *others, apart = contradicting(Policy.REPAIR, *rows)
    assert one.query is not None and (one.query.segments, one.query.task) == (((1, 3), (8, 9)), "tal")
    assert one.repairs == (Repair("contradicting", ((8, 9),), ((1, 3), (8, 9)), None),)
    assert [verdict.reason for verdict in others] == ["contradicting: merged into a/1"] * 2
    assert apart == contradicting(Policy.NOTE, rows[3])[0], "another question"


def test_truths_that_share_time_do_not_contradict_each_other() -> None:
    verdicts = contradicting(Policy.QUARANTINE, row((1, 3)), row((2, 4), number=2))
    assert all(verdict.query is not None and not verdict.findings for verdict in verdicts)


def test_contradicting_rows_are_all_set_aside() -> None:
    verdicts = contradicting(Policy.QUARANTINE, row((1, 3)), row((5, 6), number=2))
    assert [verdict.reason for verdict in verdicts] == [
        "contradicting: a/1 to a/2 ask the same, 2 truths are apart"
    ] * 2


def test_a_sound_row_breaks_nothing() -> None:
    verdict = Validator(read_policies([]), None).judge(row((1, 2), (2, 3)))
    assert verdict == Verdict(verdict.row, row((1, 2), (2, 3)).parsed, ())  # type: ignore[arg-type]


def test_several_faults_are_all_found_and_mended_in_turn() -> None:
    verdict = Validator(read_policies([]), None).judge(row((18, 20.5), (9, 7), (8, 10)))
    assert verdict.query is not None
    assert verdict.query.segments == ((7, 10), (18, 20))
    assert [repair.rule for repair in verdict.repairs] == ["reversed", "unsorted", "past_end", "overlapping"]
    for earlier, later in pairwise(verdict.repairs):
        assert earlier.after == later.before


def test_a_repair_that_cannot_be_made_quarantines_and_the_other_faults_still_count() -> None:
    verdict = Validator(read_policies([]), None).judge(row((1, 3), (2, 4), (19, 30)))
    assert [finding.rule for finding in verdict.findings] == ["past_end", "overlapping"]
    assert verdict.query is None
    assert verdict.reason == "past_end: [19, 30] ends 10 s after the video, which lasts 20 s"


def test_a_quarantined_row_makes_no_later_one_a_duplicate() -> None:
    validator = Validator(read_policies([]), None)
    assert validator.judge(row((5, 5))).query is None
    assert validator.judge(row((5, 6))).query is not None


def test_rows_are_compared_after_their_repairs() -> None:
    validator = Validator(read_policies([]), None)
    validator.judge(row((1, 2)))
    verdict = validator.judge(row((2, 1), number=2))
    assert [finding.rule for finding in verdict.findings] == ["reversed", "duplicate"]


def test_videos_are_looked_for_at_the_root_or_beside_the_annotations(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").touch()
    here = row((1, 2))._replace(file=str(tmp_path / "a.jsonl"))
    unnameable = here._replace(parsed=GroundingQuery("a/1", "v" * 5000, "q", ((1, 2),)))
    assert Validator(read_policies([]), VideoFiles()).judge(unnameable).query is None
    for root, is_kept in ((None, True), (str(tmp_path), True), ("/elsewhere", False), ("s3://bucket", True)):
        verdict = Validator(read_policies([]), VideoFiles(), video_root=root).judge(here)
        assert (verdict.query is not None) == is_kept
    assert verdict.query is not None
    assert verdict.query.video == "v/a.mp4", "stored as annotated"


def test_reasons_are_valid_unicode() -> None:
    broken = ImportedRow("a", 1, "", DataError("field holds \ud800"))
    assert Validator(read_policies([]), None).judge(broken).reason == "malformed: field holds \\ud800"
