"""Who gets a member of a crew: the first to ask, and the least busy member that has room."""

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic

from museg_ray.fleet.member import Member, W


@dataclass(slots=True, eq=False)
class Lease(Generic[W]):
    """A job that has a member, or waits for one."""

    size: int
    """Of the member's room."""
    alone: bool
    """Nothing else may be inside the member meanwhile."""
    member: "asyncio.Future[Member[W]]"
    reserved: Member[W] | None = None
    """Gets nothing new until it is idle, and is then this one's alone."""


class Leases(Generic[W]):
    """The jobs of one crew."""

    def __init__(self, room: int) -> None:
        """`room`: a member takes another job while its load is below it."""
        self._room = room
        self._waiting: list[tuple[int, int, Lease[W]]] = []  # a heap: order, number of the asker
        self._num_asked = count()

    @property
    def num_waiting(self) -> int:
        return sum(not lease.member.done() for _, _, lease in self._waiting)

    def ask(self, order: int, size: int, alone: bool) -> Lease[W]:
        """Its member is known once `grant` has one for it, which then counts this job."""
        lease = Lease[W](size, alone, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, (order, next(self._num_asked), lease))
        return lease

    def grant(self, serving: Sequence[Member[W]]) -> None:
        """Give members that have room to those who ask, the lowest order first. One that waits for a member of its own
        holds up no other."""
        held_up = []
        while self._waiting:
            lease = self._waiting[0][2]
            if not lease.member.done():  # else its asker has given up
                member = self._alone(lease, serving) if lease.alone else self._least_busy(serving)
                if member is None and not lease.alone:
                    break
                if member is None:
                    held_up.append(self._waiting[0])
                else:
                    member.num_jobs += 1
                    member.load += lease.size
                    lease.member.set_result(member)
            heapq.heappop(self._waiting)
        for waiting in held_up:
            heapq.heappush(self._waiting, waiting)

    def end(self, lease: Lease[W]) -> Member[W] | None:
        """Its job is over, or its asker has given up; the member that it had."""
        if lease.reserved is not None:
            lease.reserved.is_reserved = False
        if lease.member.done() and not lease.member.cancelled() and not lease.member.exception():
            member = lease.member.result()
            member.num_jobs -= 1
            member.load -= lease.size
            return member
        return None

    def fail(self, error: Exception) -> None:
        """All who wait get the error."""
        waiting, self._waiting = self._waiting, []
        for _, _, lease in waiting:
            if not lease.member.done():
                lease.member.set_exception(error)

    def _least_busy(self, serving: Sequence[Member[W]]) -> Member[W] | None:
        best, least = None, self._room
        for member in serving:
            if member.load < least and member.is_fit and not member.is_reserved:
                best, least = member, member.load
                if not least:
                    break
        return best

    def _alone(self, lease: Lease[W], serving: Sequence[Member[W]]) -> Member[W] | None:
        if lease.reserved is not None and not lease.reserved.is_fit:
            lease.reserved.is_reserved = False
            lease.reserved = None
        if lease.reserved not in serving:
            lease.reserved = min(
                (member for member in serving if member.is_fit and not member.is_reserved),
                key=lambda member: member.load,
                default=None,
            )
            if lease.reserved is not None:
                lease.reserved.is_reserved = True
        member = lease.reserved
        return member if member is not None and not member.num_jobs and not member.num_holds else None
