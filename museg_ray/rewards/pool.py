"""Shares groups out over the reward actors, and finds the response that one of them fails on."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from museg_ray.config.schema import Config, RewardWeights
from museg_ray.errors import RewardError
from museg_ray.events import EventSink
from museg_ray.fleet.crew import Crew
from museg_ray.fleet.errors import MemberLost
from museg_ray.fleet.member import CrewStatus, Member
from museg_ray.fleet.worker import Worker
from museg_ray.rewards.actor import RewardWorker
from museg_ray.rewards.scorer import GroupRequest, Outcome, pack, unpack_outcomes
from museg_ray.types import GroundingQuery, Group, RewardParts, Unscored

BATCH_RESPONSES = 1000
"""Most responses of one call: enough that a call's cost of about 1 ms does not count beside their scoring."""

CALLS_PER_ACTOR = 3
"""Calls at an actor at once: while it scores one the next ones' bytes travel, and a driver that is busy for a moment
does not leave it idle."""

START_TIMEOUT_S = 600.0
"""Actors that wait longer than this for their place at the start of a run wait for ever."""

DEADLINE_TIMEOUTS = 4.0
"""An actor gets this many `response_timeout_s` for each call at it. It ends a call by itself after at most three; the
pool's deadline is for a process that does nothing at all."""


_Run = Callable[[Coroutine[Any, Any, bytes]], Awaitable[bytes]]
"""Awaits a call of a worker."""


class ScoringWorker(Worker, Protocol):
    """What the pool asks of a member, besides what a crew does."""

    async def score(self, parts: Sequence[bytes]) -> bytes: ...


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


class RewardPool:
    """Scores groups on `num_actors` actors, in batches of those that wait. Used from one event loop.

    A response that an actor fails on (it raises, hangs, or kills the process) is tried once more by itself, in a
    process apart, and then given up as Unscored. What else was at the actor is scored again and loses nothing.

    Invariant: a failure of actor, machine or network never becomes a reward. A 0 in its place would push the policy
    away from a response that nobody has looked at.
    """

    def __init__(self, config: Config, events: EventSink, make: Callable[[float], ScoringWorker] | None = None) -> None:
        """Start `rewards.num_actors` actors.

        Args:
            config: of the run.
            events: are told of joins and losses.
            make: a new worker that reserves so many CPUs; None: a Ray actor.
        """
        self._config = config.rewards
        self._make = make or (lambda num_cpus: RewardWorker(config.rewards, num_cpus))
        self._waiting: deque[_Job] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._suspect_lock = asyncio.Lock()
        self._suspects_worker: ScoringWorker | None = None
        self._is_closed = False
        self._crew = Crew[ScoringWorker](
            "reward", lambda: self._make(config.rewards.num_cpus), config.fleet, events, room=CALLS_PER_ACTOR
        )
        self._crew.on_change = self._dispatch
        self._crew.resize(config.rewards.num_actors)

    @property
    def num_waiting(self) -> int:
        """Groups that no actor has taken yet."""
        return len(self._waiting)

    async def ready(self) -> None:
        """Wait until the first actors are up.

        Raises:
            RewardError: one did not start, or found no place in the cluster.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._crew.ready()
        except TimeoutError:
            raise RewardError(
                f"{self._config.num_actors} reward actors were not up within {START_TIMEOUT_S:g} s. Each reserves "
                f"{self._config.num_cpus:g} CPUs; lower rewards.num_actors or rewards.num_cpus, or add machines."
            ) from None

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

    def resize(self, size: int) -> None:
        """Have `size` >= 1 actors from now on. Actors too many finish what is at them first."""
        self._crew.resize(size)

    def status(self) -> CrewStatus:
        return replace(self._crew.status(), num_queued=self.num_waiting)

    async def close(self) -> None:
        """End the actors. What still waits for a score gets a RewardError."""
        self._is_closed = True
        for call in self._calls:
            call.cancel()
        self._fail_waiting(_closed())
        self._end_suspects_worker()
        await self._crew.close()

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

    def _least_busy(self) -> Member[ScoringWorker] | None:
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

    async def _call(self, member: Member[ScoringWorker], batch: Sequence[_Job]) -> None:
        """Score a batch on an actor. Groups that it did not get to wait again, before all others."""
        num_responses = sum(job.num_open for job in batch)
        try:
            requests = [job.request() for job in batch]
            replies = await self._ask(member.run, member.worker, requests, member.num_jobs)
            for job, outcomes in zip(batch, replies, strict=True):
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

    async def _ask(
        self, run: _Run, worker: ScoringWorker, requests: Sequence[GroupRequest], num_calls: int
    ) -> list[list[Outcome]]:
        """
        Raises:
            MemberLost: the actor died, or was not done in time for the `num_calls` calls at it.
            RewardError: a fault of ours in the actor.
        """
        deadline_s = DEADLINE_TIMEOUTS * self._config.response_timeout_s * num_calls
        try:
            async with asyncio.timeout(deadline_s):
                return unpack_outcomes(await run(worker.score(pack(requests))))
        except TimeoutError:
            raise MemberLost(f"the reward actor was not done after {deadline_s:g} s") from None

    async def _retry_alone(self, text: str, job: _Job, reason: str) -> RewardParts | Unscored:
        """The second and last try of one response, with nothing else at the actor that it may take along."""
        async with self._suspect_lock:
            if self._is_closed:
                raise _closed()
            if self._suspects_worker is None:
                # Without CPUs of its own: the machines may be full, and a suspect must not wait for ever.
                self._suspects_worker = self._make(0)
            try:
                await self._start(self._suspects_worker)
                request = ([text], job.query, job.weights)
                ((outcome,),) = await self._ask(_plainly, self._suspects_worker, [request], num_calls=1)
            except MemberLost as failure:
                self._end_suspects_worker()
                if self._is_closed:
                    raise _closed() from failure
                outcome = str(failure)
            except BaseException:
                self._end_suspects_worker()  # the response may still be at it, and must not meet the next one
                raise
        return outcome if isinstance(outcome, RewardParts) else Unscored(text, (reason, outcome))

    async def _start(self, worker: ScoringWorker) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker.start()
        except TimeoutError:
            raise RewardError(
                f"A process for a response that a reward actor failed on found no place within {START_TIMEOUT_S:g} s, "
                "though it reserves no CPU: the cluster has no machine that takes anything."
            ) from None

    def _end_suspects_worker(self) -> None:
        if self._suspects_worker is not None:
            self._suspects_worker.kill()
            self._suspects_worker = None

    def _fail_waiting(self, error: Exception) -> None:
        _fail(self._waiting, error)
        self._waiting.clear()


async def _plainly(call: Coroutine[Any, Any, bytes]) -> bytes:
    return await call


def _closed() -> RewardError:
    return RewardError("The reward pool was closed before the group was scored.")


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.all_known.done():  # its caller may have been cancelled
            job.all_known.set_exception(error)
