"""Which group goes into which packed sequence on which rank: a function of the lengths alone, so that every rank finds
the same plan by itself."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A group, or as many of its responses as fit into one sequence."""

    group: int
    """Index among the update's groups."""
    responses: tuple[int, ...]
    """Indices within the group, in order."""
    num_tokens: int
    """Prompt and these responses together."""


PackPlan = tuple[Part, ...]
"""The parts of one packed sequence."""


@dataclass(frozen=True, slots=True)
class GroupLengths:
    """Tokens of one group."""

    prompt: int
    """Video tokens included."""
    completions: Sequence[int]


def plan_packs(groups: Sequence[GroupLengths], max_tokens: int, num_ranks: int) -> list[list[PackPlan]]:
    """Packs by rank.

    Parts are dealt longest first to the rank with the fewest tokens so far, and on each rank put into the first pack
    that has room.

    Invariant: every rank has the same number of packs, the last ones of some may be empty. Under ZeRO 3 each layer of
    each pass gathers its weights from all ranks, so a rank that made one pass fewer would leave the others waiting for
    ever. (For the output head, which a pass calls once a chunk of tokens, see `MicroBatch.num_chunks`.)

    Args:
        groups: at least one.
        max_tokens: at least prompt and any one completion of every group.
        num_ranks: at least 1.
    """
    parts = [part for index, group in enumerate(groups) for part in _split(index, group, max_tokens)]
    longest_first = sorted(parts, key=lambda part: -part.num_tokens)  # stable: equal lengths in their order
    dealt: list[list[Part]] = [[] for _ in range(num_ranks)]
    for part in longest_first:
        min(dealt, key=lambda rank: sum(each.num_tokens for each in rank)).append(part)
    packs = [_first_fit(rank, max_tokens) for rank in dealt]
    most = max(len(rank) for rank in packs)
    return [rank + [()] * (most - len(rank)) for rank in packs]


def _split(index: int, group: GroupLengths, max_tokens: int) -> list[Part]:
    """The group as one part, or its responses in order over as many as it takes."""
    room = max_tokens - group.prompt
    assert max(group.completions) <= room, f"a response of {max(group.completions)} tokens, room for {room}"
    shares: list[list[int]] = [[]]
    used = 0
    for response, length in enumerate(group.completions):
        if used + length > room:
            shares.append([])
            used = 0
        shares[-1].append(response)
        used += length
    return [
        Part(index, tuple(share), group.prompt + sum(group.completions[response] for response in share))
        for share in shares
    ]


def _first_fit(parts: Sequence[Part], max_tokens: int) -> list[PackPlan]:
    packs: list[list[Part]] = []
    for part in parts:
        room = max_tokens - part.num_tokens
        fitting = (pack for pack in packs if sum(each.num_tokens for each in pack) <= room)
        pack = next(fitting, None)
        if pack is None:
            packs.append([part])
        else:
            pack.append(part)
    return [tuple(pack) for pack in packs]
