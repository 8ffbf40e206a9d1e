"""Shares groups out over the reward actors, and finds the response that one of them fails on."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.errors import RewardError
from museg_ray.rewards.actor import RewardActor, start_actor
from museg_ray.rewards.scorer import GroupRequest, Outcome, pack, unpack_outcomes
from museg_ray.types import GroundingQuery, ResponseGroup, RewardParts, Unscored

BATCH_RESPONSES = 1000
"""Most responses of one call: enough that a call's cost of about 1 ms does not count beside their scoring."""

CALLS_PER_ACTOR = 3
"""Calls at an actor at once: while it scores one the next ones' bytes travel, and a driver that is busy for a moment
does not leave it idle."""

START_TIMEOUT_S = 600.0
"""Actors that wait longer than this for their place wait for ever."""

DEADLINE_TIMEOUTS = 4.0
"""An actor gets this many `response_timeout_s` for each call at it. It ends a call by itself after at most three; the
pool's deadline is for a process that does nothing at all."""


@dataclass(slots=True, eq=False)
class _Member:
    """An actor and what it is busy with."""

    actor: "ActorHandle[RewardActor]"
    is_up: bool = False
    """Its process has started."""
    num_calls: int = 0
    num_responses: int = 0
    is_retired: bool = False
    """Gets nothing new, and is killed once idle."""


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

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._members: list[_Member] = []
        self._waiting: deque[_Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        """Starts of actors, and calls under way."""
        self._suspect_lock = asyncio.Lock()
        self._suspects_actor: ActorHandle[RewardActor] | None = None
        self._is_closed = False
        self._starts = [self._add_member() for _ in range(config.num_actors)]

    @property
    def num_waiting(self) -> int:
        """Groups that no actor has taken yet."""
        return len(self._waiting)

    @property
    def num_actors(self) -> int:
        """Actors that take groups, or will once they have started."""
        return sum(not member.is_retired for member in self._members)

    async def ready(self) -> None:
        """Wait until the first actors are up.

        Raises:
            RewardError: one did not start, or found no place in the cluster.
        """
        await asyncio.gather(*self._starts)

    async def score(self, group: ResponseGroup, weights: RewardWeights) -> tuple[RewardParts | Unscored, ...]:
        """What each of the group's G responses earned, in their order.

        Raises:
            RewardError: no reward actor is left, or one of them found a fault of ours.
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

    def resize(self, num_actors: int) -> None:
        """Have `num_actors` >= 1 actors from now on. Actors too many finish what is at them first."""
        assert num_actors >= 1, "a pool needs an actor"
        taking = [member for member in self._members if not member.is_retired]
        for member in taking[num_actors:]:
            member.is_retired = True
            self._end_if_retired(member)
        for _ in range(num_actors - len(taking)):
            self._add_member()

    def close(self) -> None:
        """Kill the actors. What still waits for a score gets a RewardError."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self._fail_waiting(_closed())
        for member in self._members:
            ray.kill(member.actor)
        self._members.clear()
        self._end_suspects_actor()

    def _add_member(self) -> asyncio.Task[None]:
        """A new actor, which takes groups as soon as it is up; the task of its start."""
        member = _Member(start_actor(self._config, self._config.num_cpus))
        self._members.append(member)
        start = self._spawn(self._start(member))
        start.add_done_callback(_is_told_elsewhere)
        return start

    async def _start(self, member: _Member) -> None:
        """
        Raises:
            RewardError: the actor did not start, or found no place.
        """
        try:
            await self._up(member.actor)
        except RewardError as error:
            self._remove(member)
            if not self.num_actors:
                self._fail_waiting(error)
            logging.getLogger(__name__).warning("%d reward actors are left: %s", self.num_actors, error)
            raise
        member.is_up = True
        self._dispatch()

    async def _up(self, actor: "ActorHandle[RewardActor]") -> None:
        """
        Raises:
            RewardError: the actor's process did not start, or found no place.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await actor.__ray_ready__.remote()
        except TimeoutError:
            raise RewardError(
                f"A reward actor was not up within {START_TIMEOUT_S:g} s. Each reserves {self._config.num_cpus:g} "
                "CPUs; lower rewards.num_actors or rewards.num_cpus, or add machines."
            ) from None
        except RayError as error:
            raise RewardError(
                f"A reward actor did not start: {_lines(error)[-1]} A module that rewards.custom names must be "
                "importable on every node; for other reasons look into the Ray worker logs."
            ) from error

    def _dispatch(self) -> None:
        """Give waiting groups to actors that have room, the least busy first; an actor's share of all that wait."""
        if self._waiting and not self.num_actors:
            self._fail_waiting(RewardError("No reward actor is left; the log says why the last one did not start."))
        share = 0
        while self._waiting and (member := self._least_busy()) is not None:
            share = share or math.ceil(sum(job.num_open for job in self._waiting) / self.num_actors)
            batch = self._take_batch(min(share, BATCH_RESPONSES))
            member.num_calls += 1
            member.num_responses += sum(job.num_open for job in batch)
            self._spawn(self._call(member, batch))

    def _least_busy(self) -> _Member | None:
        """Of the actors that take another call the one with the fewest responses; None when none does."""
        free = [m for m in self._members if m.is_up and not m.is_retired and m.num_calls < CALLS_PER_ACTOR]
        return min(free, key=lambda m: (m.num_calls, m.num_responses), default=None)

    def _take_batch(self, room: int) -> list[_Job]:
        """Groups from the front that have at most `room` responses together; at least one group."""
        batch: list[_Job] = []
        while self._waiting and (not batch or self._waiting[0].num_open <= room):
            batch.append(self._waiting.popleft())
            room -= batch[-1].num_open
        return batch

    async def _call(self, member: _Member, batch: Sequence[_Job]) -> None:
        """Score a batch on an actor. Groups that it did not get to wait again, before all others."""
        num_responses = sum(job.num_open for job in batch)
        try:
            replies = await self._ask(member.actor, [job.request() for job in batch], member.num_calls)
            for job, outcomes in zip(batch, replies, strict=True):
                job.outcomes += outcomes
        except _ActorFailed as failure:
            self._replace(member)
            for job in batch:
                job.outcomes += [str(failure)] * job.num_open
        except asyncio.CancelledError:
            _fail(batch, _closed())
            raise
        except Exception as error:  # of ours: whoever waits for these groups has to learn of it
            _fail(batch, error)
        finally:
            member.num_calls -= 1
            member.num_responses -= num_responses
            self._end_if_retired(member)
        for job in reversed(batch):
            if job.num_open and not job.all_known.done():
                self._waiting.appendleft(job)
            elif not job.all_known.done():
                job.all_known.set_result(None)
        self._dispatch()

    async def _ask(
        self, actor: "ActorHandle[RewardActor]", requests: Sequence[GroupRequest], num_calls: int
    ) -> list[list[Outcome]]:
        """
        Raises:
            _ActorFailed: the actor died, or was not done in time for the `num_calls` calls at it.
            RewardError: a fault of ours in the actor.
        """
        deadline_s = DEADLINE_TIMEOUTS * self._config.response_timeout_s * num_calls
        try:
            async with asyncio.timeout(deadline_s):
                return unpack_outcomes(await actor.score.remote(*pack(requests)))
        except TimeoutError:
            raise _ActorFailed(f"the reward actor was not done after {deadline_s:g} s") from None
        except RayTaskError as error:
            raise RewardError(f"A reward actor failed, which is a fault of museg_ray: {error}") from error
        except RayError as error:
            raise _ActorFailed(f"{type(error).__name__}: {_lines(error)[0]}") from error

    async def _retry_alone(self, text: str, job: _Job, reason: str) -> RewardParts | Unscored:
        """The second and last try of one response, with nothing else at the actor that it may take along."""
        async with self._suspect_lock:
            if self._is_closed:
                raise _closed()
            if self._suspects_actor is None:
                # Without CPUs of its own: the machines may be full, and a suspect must not wait for ever.
                self._suspects_actor = start_actor(self._config, num_cpus=0)
            try:
                await self._up(self._suspects_actor)
                request = ([text], job.query, job.weights)
                ((outcome,),) = await self._ask(self._suspects_actor, [request], num_calls=1)
            except _ActorFailed as failure:
                self._end_suspects_actor()
                if self._is_closed:
                    raise _closed() from failure
                outcome = str(failure)
            except BaseException:
                self._end_suspects_actor()  # the response may still be at it, and must not meet the next one
                raise
        return outcome if isinstance(outcome, RewardParts) else Unscored(text, (reason, outcome))

    def _end_suspects_actor(self) -> None:
        if self._suspects_actor is not None:
            ray.kill(self._suspects_actor)
            self._suspects_actor = None

    def _replace(self, member: _Member) -> None:
        """A new actor in the place of a failed one; all of its calls may come here, the later ones find it gone."""
        if self._remove(member) and not member.is_retired and not self._is_closed:
            self._add_member()

    def _end_if_retired(self, member: _Member) -> None:
        if member.is_retired and not member.num_calls:
            self._remove(member)

    def _remove(self, member: _Member) -> bool:
        """Kill an actor; False where it is gone already."""
        if member not in self._members:
            return False
        ray.kill(member.actor)
        self._members.remove(member)
        return True

    def _fail_waiting(self, error: RewardError) -> None:
        _fail(self._waiting, error)
        self._waiting.clear()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _ActorFailed(Exception):
    """An actor died or is stuck; what was at it has no outcome."""


def _closed() -> RewardError:
    return RewardError("The reward pool was closed before the group was scored.")


def _is_told_elsewhere(start: asyncio.Task[None]) -> None:
    """Of a start that failed the log and the waiting groups tell; asyncio need not complain as well."""
    if not start.cancelled():
        start.exception()


def _fail(jobs: Iterable[_Job], error: Exception) -> None:
    for job in jobs:
        if not job.all_known.done():  # its caller may have been cancelled
            job.all_known.set_exception(error)


def _lines(error: BaseException) -> list[str]:
    return [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
