"""Applies the rules to imported rows: each is kept, mended or not, or quarantined with its reason."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from museg_ray.data.annotations import join_video
from museg_ray.data.importers.rows import ImportedRow, NotGrounding
from museg_ray.data.rules import SEGMENT_CHECKS, Finding, Policy
from museg_ray.errors import DataError
from museg_ray.files import is_url
from museg_ray.types import GroundingQuery, Segment


class Repair(NamedTuple):
    """One change of a row's segments."""

    rule: str
    before: tuple[Segment, ...]
    after: tuple[Segment, ...]
    amount_s: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a row."""

    row: ImportedRow
    query: GroundingQuery | None
    """With mended segments; None where the row is quarantined."""
    findings: tuple[Finding, ...]
    """Of every rule that the row breaks, at most one a rule."""
    repairs: tuple[Repair, ...] = ()
    """Of a kept row, in order."""
    reason: str = ""
    """Why it is quarantined."""


class Validator:
    """Judges rows one after the other; it remembers the kept ones, to know a duplicate when it comes."""

    def __init__(self, policies: Mapping[str, Policy], check_videos: bool, video_root: str | None = None) -> None:
        """
        Args:
            policies: of every rule.
            check_videos: look for every video file.
            video_root: folder or URL that relative video paths start from; the annotation file's folder when None.
        """
        self._policies = policies
        self._check_videos = check_videos
        self._video_root = video_root
        self._ids: set[str] = set()
        self._contents: set[tuple[str, str, tuple[Segment, ...]]] = set()
        self._is_there: dict[str, bool] = {}

    def judge(self, row: ImportedRow) -> Verdict:
        """
        Raises:
            DataError: the row breaks a rule whose policy is `error`; names file, row and rule.
        """
        if isinstance(row.parsed, DataError):
            rule = "not_grounding" if isinstance(row.parsed, NotGrounding) else "malformed"
            return self._decided(row, None, [Finding(rule, str(row.parsed))], [])
        findings, repairs = self._check_segments(row.parsed)
        query = replace(row.parsed, segments=repairs[-1].after if repairs else row.parsed.segments)
        return self._decided(row, query, [*findings, *self._check_row(query, row.file)], repairs)

    def _check_segments(self, query: GroundingQuery) -> tuple[list[Finding], list[Repair]]:
        segments, findings, repairs = query.segments, list[Finding](), list[Repair]()
        for rule, check in SEGMENT_CHECKS.items():
            finding = check(segments, query.duration_s)
            if finding is None:
                continue
            findings.append(finding)
            if rule == "not_finite":
                break  # there is no order among such times
            if self._mends(finding) and finding.mended is not None:
                repairs.append(Repair(rule, segments, finding.mended, finding.amount_s))
                segments = finding.mended
        return findings, repairs

    def _check_row(self, query: GroundingQuery, file: str) -> list[Finding]:
        findings = []
        if query.query_id in self._ids:
            findings.append(Finding("repeated_id", f"an earlier row is {query.query_id} too"))
        if (query.video, query.question, query.segments) in self._contents:
            findings.append(Finding("duplicate", "an earlier row has this video, question and segments"))
        if self._check_videos:
            video = join_video(self._video_root or str(Path(file).parent), query.video)
            if not self._has_video(video):
                findings.append(Finding("missing_video", f"no file {video}"))
        if query.duration_s is None:
            findings.append(Finding("duration_absent", "the annotation tells no duration"))
        return findings

    def _has_video(self, video: str) -> bool:
        if video not in self._is_there:
            self._is_there[video] = is_url(video) or os.path.isfile(video)
        return self._is_there[video]

    def _decided(
        self, row: ImportedRow, query: GroundingQuery | None, findings: list[Finding], repairs: list[Repair]
    ) -> Verdict:
        for finding in findings:
            if self._policies[finding.rule] is Policy.ERROR:
                raise DataError(
                    f"{row.file}:{row.number}: {finding.rule}: {finding.reason}. Correct the row, or give the rule "
                    f"another policy, such as --rule {finding.rule}=quarantine."
                )
        against = [finding for finding in findings if not self._is_kept_with(finding)]
        if query is None or against:
            reason = "; ".join(f"{finding.rule}: {finding.reason}" for finding in against)
            # Reasons quote the row, which may hold half a surrogate pair.
            sound = reason.encode("utf-8", "backslashreplace").decode("utf-8")
            return Verdict(row, None, tuple(findings), reason=sound)
        self._ids.add(query.query_id)
        self._contents.add((query.video, query.question, query.segments))
        return Verdict(row, query, tuple(findings), tuple(repairs))

    def _is_kept_with(self, finding: Finding) -> bool:
        is_mended = self._mends(finding) and finding.mended is not None
        return is_mended or self._policies[finding.rule] is Policy.NOTE

    def _mends(self, finding: Finding) -> bool:
        return self._policies[finding.rule] is Policy.REPAIR
