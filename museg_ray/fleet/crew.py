"""Crews: the life of every actor that serves a run, from joining to leaving.

    starting ─▶ serving ─▶ draining ─▶ gone
        └──────────┴───────────┴──────▶ lost: killed, and replaced where it is still wanted

A member starts, is prepared (rollouts: it loads the newest weights and is probed), and only then serves. One that dies,
or does not answer, is lost: what was inside it goes back to whoever put it there (`MemberLost`), and another starts.
Restarts are bounded: a crew that fails again and again has failed as a whole, for one reason that ends the run.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Generic

from ray.exceptions import RayError

from museg_ray.clock import now_s
from museg_ray.config.schema import FleetConfig
from museg_ray.errors import MusegError, ResourceError
from museg_ray.events import EventKind, EventSink
from museg_ray.fleet.deadlines import Deadline, DeadlineMissed, within
from museg_ray.fleet.errors import MemberLost
from museg_ray.fleet.leases import Leases
from museg_ray.fleet.member import CrewStatus, Member, MemberState, W

PLACE_GRACE_S = 5.0
"""At the start of a run, for the cluster to say whether it has room for a member."""
MAX_BACKOFF_S = 60.0
MAX_PINGS_PER_S = 64
"""Of a crew: a ping costs the driver half a millisecond. In a larger crew each member is asked less often; one that has
jobs shows its death by them at once."""


class Crew(Generic[W]):
    """The members of one role. For one event loop.

    Invariant: a member gets a job only while it serves, so none that has older weights than the others, or was not
    probed, ever takes part.
    """

    def __init__(
        self,
        role: str,
        make: Callable[[], W],
        limits: FleetConfig,
        deadlines: Mapping[str, Deadline],
        events: EventSink,
        room: int = 1,
        prepare: Callable[[Member[W]], Awaitable[str]] | None = None,
    ) -> None:
        """
        Args:
            role: `rollout`; names members and events.
            make: a new worker, which is still to be started.
            limits: of restarts, and how often members are looked at.
            deadlines: of all calls.
            events: are told of every join and loss.
            room: of a member, in the unit of `lease`.
            prepare: of a member that has started and does not serve yet; says in words what it did.
        """
        self._role, self._make, self._limits, self._events = role, make, limits, events
        self.deadlines = {name.removeprefix(f"{role}."): deadline for name, deadline in deadlines.items()}
        """By method of a worker."""
        self._prepare = prepare
        self.members: list[Member[W]] = []
        self._serving: list[Member[W]] | None = None  # until one comes or goes: it is asked for with every job
        self._numbers = count()
        self._leases = Leases[W](room)
        self._tasks: set[asyncio.Task[None]] = set()  # the lives of members
        self._leaving: set[asyncio.Task[None]] = set()  # what is being put away
        self._losses: deque[float] = deque()  # when, within the restart window
        self._reasons: list[str] = []
        self._was_manned = self._is_closed = False
        self._pause: asyncio.TimerHandle | None = None  # before the next start
        self._failed_start = ""  # the reason of the last one, until one succeeds
        self.failure: Exception | None = None
        """Why the crew as a whole has failed."""
        self.num_wanted = self._num_losses = 0
        self._changed = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when a member serves or is free again, and when the crew has failed."""

    @property
    def serving(self) -> list[Member[W]]:
        if self._serving is None:
            self._serving = [member for member in self.members if member.state is MemberState.SERVING]
        return self._serving

    def resize(self, size: int) -> None:
        """Have `size` members from now on: what is too many leaves, first those that do not serve yet."""
        assert size >= 1, "a crew needs a member"
        if size != self.num_wanted and self.num_wanted:
            self._events(EventKind.SCALE, f"{self._role}: {self.num_wanted} to {size} members", role=self._role)
        self.num_wanted = size
        staying = self._staying
        staying.sort(key=lambda m: (m.is_least, m.state is not MemberState.STARTING, m.num_jobs))
        for member in staying[: max(0, len(staying) - size)]:
            self.drain(member, "fewer are wanted")
        self._fill()

    async def ready(self) -> None:
        """Return when those that are wanted serve, at least one, but for those that the cluster has no room for: they
        join when it has.

        Raises:
            MusegError: the crew has failed.
        """
        while self.failure is None and len(self.serving) < self.num_wanted:
            long_ago_s = now_s() - PLACE_GRACE_S
            without_room = [m for m in self.members if not m.is_placed and m.born_s <= long_ago_s]
            if self.serving and len(self.serving) + len(without_room) >= self.num_wanted:
                break
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), PLACE_GRACE_S)
        if self.failure is not None:
            raise self.failure
        self._was_manned = True

    @asynccontextmanager
    async def lease(self, order: int = 0, size: int = 1, alone: bool = False) -> AsyncIterator[Member[W]]:
        """The least busy member that serves and has room, for the time of one job.

        Args:
            order: who has the lowest number is served first.
            size: what it takes of the member's room; the last one in may exceed it.
            alone: nothing else is inside the member meanwhile.

        Raises:
            MusegError: the crew has failed.
        """
        if self.failure is not None:
            raise self.failure
        lease = self._leases.ask(order, size, alone)
        self._leases.grant(self.serving)
        try:
            yield await lease.member
        finally:
            if member := self._leases.end(lease):
                self._leave_if_idle(member)
            self._leases.grant(self.serving)
            self.on_change()

    def begin_job(self, member: Member[W], size: int) -> None:
        """For a pool with a queue of its own, in place of `lease`."""
        member.num_jobs += 1
        member.load += size

    def end_job(self, member: Member[W], size: int) -> None:
        """What `begin_job` began is over."""
        member.num_jobs -= 1
        member.load -= size
        self._leave_if_idle(member)

    def hold(self, member: Member[W]) -> None:
        """It does not leave, and nobody has it alone, until it is let go; for what is no job."""
        member.num_holds += 1

    def let_go(self, member: Member[W]) -> None:
        """What `hold` began is over."""
        member.num_holds -= 1
        self._leave_if_idle(member)
        if member.is_reserved:
            self._leases.grant(self.serving)

    def lose(self, member: Member[W], reason: str, counts: bool = True, by_jobs: bool = True) -> None:
        """The member is gone, or has to go at once; all its jobs may come here, the later ones find it gone.

        Args:
            reason: in words.
            counts: against `fleet.max_restarts`.
            by_jobs: one of its jobs may have done it.
        """
        if member not in self.members:
            return
        was = member.state
        self._remove(member)
        member.num_suspects = member.num_jobs if by_jobs else 0
        member.lose(reason)
        member.worker.kill()
        self._num_losses += 1
        about = {"role": self._role, "member": member.name, "num_jobs": member.num_jobs, "age_s": self._age_s(member)}
        self._events(EventKind.LOSS, f"{member.name} is lost while {was}: {reason}", reason=reason, **about)
        if counts:
            self._count_loss(reason)
        self._fill()
        self._tell()

    def drain(self, member: Member[W], why: str) -> None:
        """It gets nothing new and leaves when it is idle; where it is still wanted another one starts."""
        if member.state not in (MemberState.STARTING, MemberState.SERVING):
            return
        about = {"role": self._role, "member": member.name, "reason": why}
        self._events(EventKind.DRAIN, f"{member.name} gets nothing new: {why}", **about)
        member.state = MemberState.DRAINING
        self._serving = None
        self._leave_if_idle(member)
        self._fill()

    async def close(self) -> None:
        """End all members: first by asking them, then by killing them."""
        self._is_closed = True
        closed = ResourceError(f"The {self._role} actors were closed.")
        self.failure = self.failure or closed
        for task in self._tasks:
            task.cancel()
        members, self.members, self._serving = self.members, [], None
        for member in members:
            member.lose(str(closed))  # before it is: what it says then may be anything
        await asyncio.gather(*(self._end(member) for member in members), *self._leaving)
        self._leases.fail(closed)

    def status(self) -> CrewStatus:
        members = [member.status() for member in self.members]
        return CrewStatus(self.num_wanted, self._num_losses, self._leases.num_waiting, members)

    # a member's life --------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start as many as are wanted and missing."""
        while not self._is_closed and self.failure is None and len(self._staying) < self.num_wanted:
            if pause_s := self._pause_s():
                if self._pause is None:
                    self._pause = asyncio.get_running_loop().call_later(pause_s, self._after_pause)
                return
            self._start_one()

    def _start_one(self) -> None:
        member = Member(f"{self._role}-{next(self._numbers)}", self._make(), now_s())
        self.members.append(member)
        task = asyncio.create_task(self._live(member))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _after_pause(self) -> None:
        """One more is started; whoever else is missing waits for the next pause."""
        self._pause = None
        if not self._is_closed and self.failure is None and len(self._staying) < self.num_wanted:
            self._start_one()
            self._fill()

    @property
    def _staying(self) -> list[Member[W]]:
        return [m for m in self.members if m.state in (MemberState.STARTING, MemberState.SERVING)]

    async def _live(self, member: Member[W]) -> None:
        try:
            member.is_least = await member.worker.placed()
            member.is_placed = True
            await within(self.deadlines["start"], "its start", member.worker.start())
            prepared = await self._prepare(member) if self._prepare else ""
        except DeadlineMissed as error:
            self._start_failed(member, ResourceError(f"{error}; see its log in Ray's log folder."))
        except MemberLost as error:
            self.lose(member, str(error))
        except MusegError as error:
            self._start_failed(member, error)
        except Exception:
            if member in self.members:  # else it was put away meanwhile, and says so in its own way
                raise
        else:
            if member.state is MemberState.STARTING:
                self._serve(member, prepared)
                await self._watch(member)

    def _serve(self, member: Member[W], prepared: str) -> None:
        member.state = MemberState.SERVING
        self._serving = None
        self._failed_start = ""
        text = f"{member.name} serves after {self._age_s(member):.1f} s{prepared}"
        self._events(EventKind.JOIN, text, role=self._role, member=member.name, start_s=self._age_s(member))
        self._tell()

    async def _watch(self, member: Member[W]) -> None:
        while True:
            await asyncio.sleep(max(self._limits.ping_every_s, len(self.members) / MAX_PINGS_PER_S))
            if member not in self.members:
                return
            try:
                is_leaving = await within(self.deadlines["ping"], "its answer to a ping", member.worker.ping())
            except MemberLost as error:
                self.lose(member, str(error))
            except Exception:
                if member in self.members:  # else it was put away meanwhile, and says so in its own way
                    raise
            else:
                if is_leaving:
                    self.drain(member, "its machine is about to be taken away")

    def _start_failed(self, member: Member[W], error: MusegError) -> None:
        """A mistake of the user's will not go away; neither will what comes twice in a row before all have served once,
        or while nobody serves."""
        if member.state is MemberState.GONE:
            return
        reason = str(error)
        is_manned = self._was_manned and self.serving
        if isinstance(error, ValueError) or (reason == self._failed_start and not is_manned):
            self._fail(error)
        self._failed_start = reason
        self.lose(member, reason)

    def _count_loss(self, reason: str) -> None:
        now = now_s()
        self._losses.append(now)
        while self._losses and self._losses[0] < now - self._limits.restart_window_s:
            self._losses.popleft()
        self._reasons = [*self._reasons, reason][-len(self._losses) :]
        if len(self._losses) > self._limits.max_restarts:
            seen = "; ".join(dict.fromkeys(self._reasons))
            self._fail(
                ResourceError(
                    f"{len(self._losses)} {self._role} actors were lost within {self._limits.restart_window_s:g} s; "
                    f"fleet.max_restarts is {self._limits.max_restarts}. Their reasons: {seen}"
                )
            )

    def _pause_s(self) -> float:
        """Before a start: none after the first loss, then longer and longer."""
        if len(self._losses) < 2:
            return 0.0
        return min(MAX_BACKOFF_S, self._limits.backoff_s * 2.0 ** (len(self._losses) - 2))

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = error
        self._leases.fail(self.failure)
        self._tell()

    def _leave_if_idle(self, member: Member[W]) -> None:
        if member.state is MemberState.DRAINING and not member.num_jobs and not member.num_holds:
            self._remove(member)
            text = f"{member.name} has left after {self._age_s(member):.1f} s"
            self._events(EventKind.LEAVE, text, role=self._role, member=member.name)
            leaving = asyncio.create_task(self._end(member))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _end(self, member: Member[W]) -> None:
        member.state = MemberState.GONE
        try:
            with suppress(MemberLost, MusegError, RayError):  # it is killed all the same
                await within(self.deadlines["close"], "its end", member.worker.close())
        finally:
            member.worker.kill()

    def _remove(self, member: Member[W]) -> None:
        member.state = MemberState.GONE
        self.members.remove(member)
        self._serving = None

    def _tell(self) -> None:
        self._leases.grant(self.serving)
        self._changed.set()
        self.on_change()

    def _done(self, task: asyncio.Task[None]) -> None:
        """What a member's life raises is a fault of ours: nobody may wait for that member for ever."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, Exception)
            self._fail(error)

    def _age_s(self, member: Member[W]) -> float:
        return round(now_s() - member.born_s, 2)


class CrewPool(Generic[W]):
    """What is asked in the same way of all that stand before a crew."""

    _crew: Crew[W]

    async def ready(self) -> None:
        """Wait until those that are wanted serve, as far as the cluster has room for them.

        Raises:
            MusegError: one cannot start, or not in time, as its worker says.
        """
        await self._crew.ready()

    def resize(self, size: int) -> None:
        """Have `size` >= 1 actors from now on. One that the cluster has no room for waits for it; those that are too
        many finish what is at them first."""
        self._crew.resize(size)

    def status(self) -> CrewStatus:
        return self._crew.status()

    async def close(self) -> None:
        """End all actors, also busy ones; what is inside them fails."""
        await self._crew.close()
