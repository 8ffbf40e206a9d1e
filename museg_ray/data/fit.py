"""Holds a query's truth to the video file once its length is known, as the import does where the files are there."""

from dataclasses import replace

from museg_ray.data.rules import NEGLIGIBLE_S, SEGMENT_CHECKS, Finding, Limits, other_length
from museg_ray.errors import Unfit, UnfitQueryError
from museg_ray.types import GroundingQuery


def fit_to_file(query: GroundingQuery, file_s: float) -> tuple[GroundingQuery, list[Finding]]:
    """The query with its truth cut at the end of the file, and what did not fit.

    Invariant: a truth that its video does not have is never trained on: every answer would earn nothing.

    Args:
        file_s: how long the video file lasts.

    Raises:
        UnfitQueryError: too little of the truth is left, or it is in another unit; names rule, query and times.
    """
    limits = Limits(query.duration_s, file_s)
    findings = [finding] if (finding := other_length(query.duration_s, file_s)) else []
    for rule in (Unfit.OTHER_UNIT, Unfit.BEYOND_FILE):
        finding = SEGMENT_CHECKS[rule](query.segments, limits)
        if finding is None or (finding.amount_s is not None and finding.amount_s < NEGLIGIBLE_S):
            continue
        if finding.mended is None:
            raise UnfitQueryError(
                f"Query {query.query_id} does not fit {query.video}: {rule}: {finding.reason}. Correct its row.", rule
            )
        query = replace(query, segments=finding.mended)
        findings.append(finding)
    return query, findings
