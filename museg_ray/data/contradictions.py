"""Kept rows that ask the same of the same video and have truths that are apart: each calls the others' answer wrong."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from museg_ray.data.rules import Finding, Policy, merged
from museg_ray.data.validate import Repair, Verdict, refused
from museg_ray.types import GroundingQuery

RULE = "contradicting"


def settle(verdicts: Sequence[Verdict], policy: Policy) -> list[Verdict]:
    """The verdicts, with those of contradicting rows changed as the rule's policy wants.

    Raises:
        DataError: the policy is `error` and there are some; names the first.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for place, verdict in enumerate(verdicts):
        if verdict.query is not None:
            groups.setdefault((verdict.query.video, verdict.query.question), []).append(place)
    settled = list(verdicts)
    for places in groups.values():
        group = [verdicts[place] for place in places]
        if _contradict(group):
            for place, verdict in zip(places, _settled(group, policy), strict=True):
                settled[place] = verdict
    return settled


def _contradict(group: Sequence[Verdict]) -> bool:
    truths = [verdict.query.segments for verdict in group if verdict.query is not None]
    return any(len(merged((*one, *other))) == len(one) + len(other) for one, other in combinations(truths, 2))


def _settled(group: Sequence[Verdict], policy: Policy) -> list[Verdict]:
    ids = [_query(verdict).query_id for verdict in group]
    finding = Finding(RULE, f"{ids[0]} to {ids[-1]} ask the same, {len(ids)} truths are apart")
    found = [replace(verdict, findings=(*verdict.findings, finding)) for verdict in group]
    if policy is Policy.ERROR:
        raise refused(group[1].row, finding)
    if policy is Policy.REPAIR:
        return [_merged(found), *(_out(verdict, f"merged into {ids[0]}") for verdict in found[1:])]
    return [_out(v, finding.reason) for v in found] if policy is Policy.QUARANTINE else found


def _merged(group: Sequence[Verdict]) -> Verdict:
    first = _query(group[0])
    truth = merged([segment for verdict in group for segment in _query(verdict).segments])
    repair = Repair(RULE, first.segments, truth, None)
    return replace(group[0], query=replace(first, segments=truth, task="tal"), repairs=(*group[0].repairs, repair))


def _out(verdict: Verdict, why: str) -> Verdict:
    return replace(verdict, query=None, repairs=(), reason=f"{RULE}: {why}")


def _query(verdict: Verdict) -> GroundingQuery:
    assert verdict.query is not None, "only kept rows contradict each other"
    return verdict.query
