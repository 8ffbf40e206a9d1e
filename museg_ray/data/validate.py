"""Applies the rules to imported rows: each is kept, mended or not, or quarantined with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from museg_ray.data.annotations import join_video
from museg_ray.data.importers.rows import ImportedRow, NotGrounding
from museg_ray.data.rules import MIN_SHARE, SEGMENT_CHECKS, Finding, Limits, Policy, other_length
from museg_ray.data.videos import FileLength, VideoFiles
from museg_ray.errors import DataError
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


def refused(row: ImportedRow, finding: Finding) -> DataError:
    """Of a rule whose policy is `error`."""
    return DataError(
        f"{row.file}:{row.number}: {finding.rule}: {finding.reason}. Correct the row, or give the rule another policy, "
        f"such as --rule {finding.rule}=quarantine."
    )


class Validator:
    """Judges rows one after the other; it remembers the kept ones, to know a duplicate when it comes."""

    def __init__(
        self,
        policies: Mapping[str, Policy],
        videos: VideoFiles | None,
        video_root: str | None = None,
        min_share: float = MIN_SHARE,
    ) -> None:
        """
        Args:
            policies: of every rule.
            videos: looks for every video file; None to look for none.
            video_root: folder or URL that relative video paths start from; the annotation file's folder when None.
            min_share: of a segment that must be left where it is cut off.
        """
        self._policies = policies
        self._videos, self._video_root, self._min_share = videos, video_root, min_share
        self._ids: set[str] = set()
        self._contents: set[tuple[str, str, tuple[Segment, ...]]] = set()

    def judge(self, row: ImportedRow) -> Verdict:
        """
        Raises:
            DataError: the row breaks a rule whose policy is `error`; names file, row and rule.
        """
        if isinstance(row.parsed, DataError):
            rule = "not_grounding" if isinstance(row.parsed, NotGrounding) else "malformed"
            return self._decided(row, None, [Finding(rule, str(row.parsed))], [])
        query, of_video, length = self._with_file(row.parsed, row.file)
        findings, repairs = self._check_segments(query, length)
        query = replace(query, segments=repairs[-1].after if repairs else query.segments)
        return self._decided(row, query, [*findings, *self._check_row(query), *of_video], repairs)

    def _with_file(self, query: GroundingQuery, file: str) -> tuple[GroundingQuery, list[Finding], FileLength | None]:
        """The query with the name that its video file has, what is wrong with that, and the file's length."""
        if self._videos is None:
            return query, [], None
        video = join_video(self._video_root or str(Path(file).parent), query.video)
        paths = self._videos.find(video)
        if not paths:
            return query, [Finding("missing_video", f"no file {video}")], None
        if len(paths) > 1:
            return query, [Finding("ambiguous_video", f"no file {video}, but {' and '.join(paths)}")], None
        findings, length = list[Finding](), self._videos.length(paths[0])
        if paths[0] != video:
            findings.append(Finding("other_ending", f"no file {video}; {paths[0]} is taken"))
            query = replace(query, video=str(PurePosixPath(query.video).with_name(Path(paths[0]).name)))
        if length is not None and (finding := other_length(query.duration_s, length.duration_s)):
            findings.append(finding)
        return query, findings, length

    def _check_segments(self, query: GroundingQuery, length: FileLength | None) -> tuple[list[Finding], list[Repair]]:
        segments, findings, repairs = query.segments, list[Finding](), list[Repair]()
        file_s, fps = length or (None, 0.0)
        limits = Limits(query.duration_s, file_s, fps, self._min_share)
        for rule, check in SEGMENT_CHECKS.items():
            finding = check(segments, limits)
            if finding is None:
                continue
            findings.append(finding)
            if rule in ("not_finite", "other_unit"):
                break  # what these times mean is not known
            if mended := self._mended(finding):
                repairs.append(Repair(rule, segments, mended, finding.amount_s))
                segments = mended
        return findings, repairs

    def _check_row(self, query: GroundingQuery) -> list[Finding]:
        findings = []
        if query.query_id in self._ids:
            findings.append(Finding("repeated_id", f"an earlier row is {query.query_id} too"))
        if (query.video, query.question, query.segments) in self._contents:
            findings.append(Finding("duplicate", "an earlier row has this video, question and segments"))
        if query.duration_s is None:
            findings.append(Finding("duration_absent", "the annotation tells no duration"))
        return findings

    def _decided(
        self, row: ImportedRow, query: GroundingQuery | None, findings: list[Finding], repairs: list[Repair]
    ) -> Verdict:
        for finding in findings:
            if self._policies[finding.rule] is Policy.ERROR:
                raise refused(row, finding)
        against = [f for f in findings if self._policies[f.rule] is not Policy.NOTE and not self._mended(f)]
        if query is None or against:
            reason = "; ".join(f"{finding.rule}: {finding.reason}" for finding in against)
            # Reasons quote the row, which may hold half a surrogate pair.
            sound = reason.encode("utf-8", "backslashreplace").decode("utf-8")
            return Verdict(row, None, tuple(findings), reason=sound)
        self._ids.add(query.query_id)
        self._contents.add((query.video, query.question, query.segments))
        return Verdict(row, query, tuple(findings), tuple(repairs))

    def _mended(self, finding: Finding) -> tuple[Segment, ...] | None:
        """The row's segments without a fault that is to be repaired and can be."""
        return finding.mended if self._policies[finding.rule] is Policy.REPAIR else None
