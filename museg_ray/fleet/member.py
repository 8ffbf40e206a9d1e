"""One member of a crew: a worker, and where it is in its life."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from museg_ray.clock import now_s
from museg_ray.fleet.deadlines import Deadline, within
from museg_ray.fleet.errors import MemberLost
from museg_ray.fleet.worker import Worker

W = TypeVar("W", bound=Worker)
Result = TypeVar("Result")


class MemberState(StrEnum):
    STARTING = "starting"
    """Comes up, or waits for room in the cluster."""
    SERVING = "serving"
    DRAINING = "draining"
    """Gets nothing new, and leaves when it is idle."""
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Member(Generic[W]):
    """One worker and where it is in its life."""

    name: str
    """`rollout-3`; no other member that this driver starts ever gets it."""
    worker: W
    born_s: float
    state: MemberState = MemberState.STARTING
    is_placed: bool = False
    """The cluster has room for it."""
    is_least: bool = False
    """The run keeps that room: it leaves last."""
    num_jobs: int = 0
    """Inside it."""
    load: int = 0
    """Of these jobs, in the unit of the crew's room."""
    num_holds: int = 0
    """Of those who need it to stay, beside its jobs."""
    is_reserved: bool = False
    """Somebody has it alone, or waits until it is idle."""
    is_fit: bool = True
    """False: it gets nothing new until what went wrong with it is mended."""
    num_suspects: int = 0
    """Jobs inside it when it was lost, where that may have been their doing."""
    lost_reason: str | None = None
    """Why it is lost; None while it is not."""
    _calls: dict[asyncio.Task[Any], tuple[str, float]] = field(default_factory=dict)
    """What each is, and when it began."""

    def status(self) -> "MemberStatus":
        what, since_s = next(iter(self._calls.values()), ("", 0.0))
        state = self.state.value if self.is_placed else "waiting"
        return MemberStatus(self.name, state, round(now_s() - self.born_s, 2), self.num_jobs, what, since_s)

    async def run(self, what: str, call: Coroutine[Any, Any, Result], deadline: Deadline) -> Result:
        """The result of a call of the worker (`what` in words).

        Raises:
            MemberLost: it is lost meanwhile, or does not answer in time.
        """
        task = asyncio.create_task(call)
        self._calls[task] = what, now_s()
        if self.lost_reason is not None:
            task.cancel()
        try:
            return await within(deadline, what, task)
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if self.lost_reason is None or this is None or this.cancelling():  # whoever waits is cancelled
                raise
            raise MemberLost(self.lost_reason) from None
        finally:
            del self._calls[task]

    def lose(self, reason: str) -> None:
        """It is gone: its calls end."""
        self.lost_reason = reason
        for task in self._calls:
            task.cancel()


@dataclass(frozen=True, slots=True)
class MemberStatus:
    name: str
    state: str
    """Its `MemberState`; `waiting` while the cluster has no room for it."""
    age_s: float
    num_jobs: int
    call: str = ""
    """The oldest that is awaited, in words; empty: none is."""
    call_since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CrewStatus:
    num_wanted: int
    num_losses: int
    """Since the run was started."""
    num_queued: int
    """Jobs that no member has taken."""
    members: list[MemberStatus]

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `dataclasses.asdict` takes ten times as long, which shows with a thousand members."""
        members = [{"name": m.name, "state": m.state, "age_s": m.age_s, "num_jobs": m.num_jobs} for m in self.members]
        counts = {"num_wanted": self.num_wanted, "num_losses": self.num_losses, "num_queued": self.num_queued}
        return {**counts, "members": members}
