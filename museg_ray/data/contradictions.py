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
    groups: dict[tuple[str, str], dict[int, GroundingQuery]] = {}  # kept queries, by their places
    for place, verdict in enumerate(verdicts):
        if query := verdict.query:
            groups.setdefault((query.video, query.question), {})[place] = query
    settled = list(verdicts)
    for group in groups.values():
        queries = list(group.values())
        if _contradict(queries):
            found = _settled([verdicts[place] for place in group], queries, policy)
            for place, verdict in zip(group, found, strict=True):
                settled[place] = verdict
    return settled


def _contradict(queries: Sequence[GroundingQuery]) -> bool:
    pairs = combinations([query.segments for query in queries], 2)
    return any(len(merged((*one, *other))) == len(one) + len(other) for one, other in pairs)


def _settled(group: Sequence[Verdict], queries: Sequence[GroundingQuery], policy: Policy) -> list[Verdict]:
    first, last = queries[0], queries[-1]
    reason = f"{first.query_id} to {last.query_id} ask the same, {len(queries)} truths are apart"
    finding = Finding(RULE, reason)
    found = [replace(verdict, findings=(*verdict.findings, finding)) for verdict in group]
    if policy is Policy.ERROR:
        raise refused(group[1].row, finding)
    if policy is Policy.QUARANTINE:
        return [_out(verdict, reason) for verdict in found]
    if policy is Policy.REPAIR:
        truth = merged([segment for query in queries for segment in query.segments])
        repairs = (*group[0].repairs, Repair(RULE, first.segments, truth, None))
        one = replace(found[0], query=replace(first, segments=truth, task="tal"), repairs=repairs)
        return [one, *(_out(verdict, f"merged into {first.query_id}") for verdict in found[1:])]
    return found


def _out(verdict: Verdict, why: str) -> Verdict:
    return replace(verdict, query=None, repairs=(), reason=f"{RULE}: {why}")
