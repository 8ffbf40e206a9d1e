"""Shares groups out over the reward actors, and finds the response that one of them fails on."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from museg_ray.config.schema import Config, RewardWeights
from museg_ray.errors import RewardError
from museg_ray.events import EventSink
from museg_ray.fleet.crew import Crew, CrewPool
from museg_ray.fleet.deadlines import DeadlineMissed, deadlines, within
from museg_ray.fleet.errors import MemberLost
from museg_ray.fleet.member import CrewStatus, Member
from museg_ray.fleet.places import ANYWHERE, Place, Places
from museg_ray.rewards.actor import RewardWorker
from museg_ray.rewards.scorer import GroupRequest, Outcome, pack, unpack_outcomes
from museg_ray.types import GroundingQuery, Group, RewardParts, Unscored

BATCH_RESPONSES = 1000
"""Most responses of one call: enough that a call's cost of about 1 ms does not count beside their scoring."""

CALLS_PER_ACTOR = 3
"""Calls at an actor at once: while it scores one the next ones' bytes travel, and a driver that is busy for a moment
does not leave it idle."""

Recruit = Callable[[float, Place], Any]
"""What stands in for a new `RewardWorker` that reserves so many CPUs, in a place."""


@dataclass(slots=True)
class _Job:
    """A group that waits for its outcomes."""

    texts: Sequence[str]
    query: GroundingQuery
    weights: RewardWeights
    outcomes: list[Outcome] = field(default_factory=list)
    """Of its first responses, as far as they are known."""
    all_known: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def num_open(self) -> int:
        return len(self.texts) - len(self.outcomes)

    def request(self) -> GroupRequest:
        """Its responses without an outcome."""
        return self.texts[len(self.outcomes) :], self.query, self.weights


class RewardPool(CrewPool[RewardWorker]):
    """Scores groups on `num_actors` actors, in batches of those that wait. Used from one event loop.

    A response that an actor fails on (it raises, hangs, or kills the process) is tried once more by itself, in a
    process apart, and then given up as Unscored. What else was at the actor is scored again and loses nothing.

    Invariant: a failure of actor, machine or network never becomes a reward. A 0 in its place would push the policy
    away from a response that nobody has looked at.
    """

    def __init__(
        self, config: Config, events: EventSink, make: Recruit | None = None, places: Places | None = None
    ) -> None:
        """Start `rewards.num_actors` actors.

        Args:
            config: of the run.
            events: are told of joins and losses.
            make: a new worker; None: a Ray actor.
            places: of the run; None: wherever Ray finds room.
        """
        self._make: Recruit = make or partial(RewardWorker, config.rewards)
        self._waiting: deque[_Job] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._suspect_lock = asyncio.Lock()
        self._suspects_worker: RewardWorker | None = None
        self._is_closed = False
        num_cpus = config.rewards.num_cpus
        self._crew = Crew(
            "reward",
            lambda: self._make(num_cpus, places.take("reward") if places else ANYWHERE),
            config.fleet,
            deadlines(config),
            events,
            CALLS_PER_ACTOR,
        )
        self._crew.on_change = self._dispatch
        self.resize(config.rewards.num_actors)

    @property
    def num_waiting(self) -> int:
        """Groups that no actor has taken yet."""
        return len(self._waiting)

    async def score(self, group: Group, weights: RewardWeights) -> tuple[RewardParts | Unscored, ...]:
        """What each of the group's G responses earned, in their order.

        Raises:
            RewardError: one of the actors found a fault of ours, or the pool was closed.
            MusegError: the actors have failed for good.
        """
        job = _Job([response.text for response in group.responses], group.query, weights)  # ids and log-probs stay here
        self._waiting.append(job)
        if len(self._waiting) == 1:
            # At the end of this turn of the loop: groups that come together travel together.
            asyncio.get_running_loop().call_soon(self._dispatch)
        await job.all_known
        scored: list[RewardParts | Unscored] = []
        for text, outcome in zip(job.texts, job.outcomes, strict=True):
            scored.append(await self._retry_alone(text, job, outcome) if isinstance(outcome, str) else outcome)
        return tuple(scored)

    def status(self) -> CrewStatus:
        return replace(super().status(), num_queued=self.num_waiting)

    async def close(self) -> None:
        """End the actors. What still waits for a score gets a RewardError."""
        self._is_closed = True
        for call in self._calls:
            call.cancel()
        self._fail_waiting(_closed())
        self._end_suspects_worker()
        await super().close()

    def _dispatch(self) -> None:
        """Give waiting groups to actors that have room, the least busy first; an actor's share of all that wait."""
        if self._crew.failure is not None:
            self._fail_waiting(self._crew.failure)
        share = 0
        while self._waiting and (member := self._least_busy()) is not None:
            share = share or math.ceil(sum(job.num_open for job in self._waiting) / self._crew.num_wanted)
            batch = self._take_batch(min(share, BATCH_RESPONSES))
            self._crew.begin_job(member, sum(job.num_open for job in batch))
            call = asyncio.create_task(self._call(member, batch))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _least_busy(self) -> Member[RewardWorker] | None:
        """Of the actors that take another call the one with the fewest responses; None when none does."""
        free = [member for member in self._crew.serving if member.num_jobs < CALLS_PER_ACTOR]
        return min(free, key=lambda member: (member.num_jobs, member.load), default=None)

    def _take_batch(self, room: int) -> list[_Job]:
        """Groups from the front that have at most `room` responses together; at least one group."""
        batch: list[_Job] = []
        while self._waiting and (not batch or self._waiting[0].num_open <= room):
            batch.append(self._waiting.popleft())
            room -= batch[-1].num_open
        return batch

    async def _call(self, member: Member[RewardWorker], batch: Sequence[_Job]) -> None:
        """Score a batch on an actor. Groups that it did not get to wait again, before all others."""
        num_responses = sum(job.num_open for job in batch)
        try:
            requests = [job.request() for job in batch]
            deadline = self._crew.deadlines["score"].times(member.num_jobs)
            what = f"scoring {num_responses} responses"
            reply = await member.run(what, member.worker.score(pack(requests)), deadline)
            for job, outcomes in zip(batch, unpack_outcomes(reply), strict=True):
                job.outcomes += outcomes
        except MemberLost as failure:
            # Not counted: a response may be to blame, and each is tried twice at most.
            self._crew.lose(member, str(failure), counts=False)
            for job in batch:
                job.outcomes += [str(failure)] * job.num_open
        except asyncio.CancelledError:
            _fail(batch, _closed())
            raise
        except Exception as error:  # of ours: whoever waits for these groups has to learn of it
            _fail(batch, error)
        finally:
            self._crew.end_job(member, num_responses)
        for job in reversed(batch):
            if job.num_open and not job.all_known.done():
                self._waiting.appendleft(job)
            elif not job.all_known.done():
                job.all_known.set_result(None)
        self._dispatch()

    async def _retry_alone(self, text: str, job: _Job, reason: str) -> RewardParts | Unscored:
        """The second and last try of one response, with nothing else at the actor that it may take along."""
        async with self._suspect_lock:
            if self._is_closed:
                raise _closed()
            if self._suspects_worker is None:
                # Without CPUs of its own: the machines may be full, and a suspect must not wait for ever.
                self._suspects_worker = self._make(0, ANYWHERE)
            try:
                await self._start(self._suspects_worker)
                call = self._suspects_worker.score(pack([([text], job.query, job.weights)]))
                reply = await within(self._crew.deadlines["score"], "scoring it alone", call)
                ((outcome,),) = unpack_outcomes(reply)
            except MemberLost as failure:
                self._end_suspects_worker()
                if self._is_closed:
                    raise _closed() from failure
                outcome = str(failure)
            except BaseException:
                self._end_suspects_worker()  # the response may still be at it, and must not meet the next one
                raise
        return outcome if isinstance(outcome, RewardParts) else Unscored(text, (reason, outcome))

    async def _start(self, worker: RewardWorker) -> None:
        try:
            await within(self._crew.deadlines["start"], "its start", worker.start())
        except DeadlineMissed as error:
            raise RewardError(
                f"A process for a response that a reward actor failed on found no place, though it reserves no CPU "
                f"({error}): the cluster has no machine that takes anything."
            ) from None

    def _end_suspects_worker(self) -> None:
        if self._suspects_worker is not None:
            self._suspects_worker.kill()
            self._suspects_worker = None

    def _fail_waiting(self, error: Exception) -> None:
        _fail(self._waiting, error)
        self._waiting.clear()


def _closed() -> RewardError:
    return RewardError("The reward pool was closed before the group was scored.")


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.all_known.done():  # its caller may have been cancelled
            job.all_known.set_exception(error)
