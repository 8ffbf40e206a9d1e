"""Shares groups out over the reward actors, and finds the response that one of them fails on."""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.errors import RewardError
from museg_ray.rewards.actor import RewardActor, start_actor
from museg_ray.rewards.scorer import GroupRequest, Outcome, pack, unpack_outcomes
from museg_ray.types import ResponseGroup, RewardParts, Unscored

BATCH_RESPONSES = 1000
"""Most responses of one call: enough that a call's cost of about 1 ms does not count beside their scoring."""

CALLS_PER_ACTOR = 2
"""Calls at an actor at once: while it scores one, the next one's bytes travel."""

START_TIMEOUT_S = 600.0
"""Actors that wait longer than this for their place wait for ever."""

DEADLINE_TIMEOUTS = 4.0
"""An actor gets this many `response_timeout_s` for each response at it. It ends stuck responses by itself after at most
three; the pool's deadline is for a process that does nothing at all."""


@dataclass(slots=True)
class _Member:
    """An actor and what it is busy with."""

    actor: "ActorHandle[RewardActor]"
    is_up: ray.ObjectRef[bool]
    """Resolves once the process has started."""
    num_calls: int = 0
    num_responses: int = 0
    is_retired: bool = False
    """Gets nothing new, and is killed once idle."""


@dataclass(slots=True)
class _Job:
    """A group that waits for its outcomes."""

    request: GroupRequest
    outcomes: asyncio.Future[list[Outcome]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def size(self) -> int:
        return len(self.request[0])


class RewardPool:
    """Scores groups on `num_actors` actors, in batches of those that wait. Used from one event loop.

    A response that an actor fails on (it raises, hangs, or kills the process) is tried once more by itself, in a
    process apart, and then given up as Unscored. What else was at the actor is scored again and loses nothing.

    Invariant: a failure of actor, machine or network never becomes a reward. A 0 in its place would push the policy
    away from a response that nobody has looked at.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._members = [self._start_member(config.num_cpus) for _ in range(config.num_actors)]
        self._waiting: deque[_Job] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._suspect_lock = asyncio.Lock()
        self._suspects_member: _Member | None = None

    @property
    def num_waiting(self) -> int:
        """Groups that no actor has taken yet."""
        return len(self._waiting)

    @property
    def num_actors(self) -> int:
        """Actors that take groups."""
        return sum(not member.is_retired for member in self._members)

    async def ready(self) -> None:
        """Wait until all actors are up.

        Raises:
            RewardError: one did not start, or found no place in the cluster.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.gather(*(_up(member) for member in self._members))
        except TimeoutError:
            raise RewardError(
                f"The {len(self._members)} reward actors were not up within {START_TIMEOUT_S:g} s. Each reserves "
                f"{self._config.num_cpus:g} CPUs; lower rewards.num_actors or rewards.num_cpus, or add machines."
            ) from None

    async def score(self, group: ResponseGroup, weights: RewardWeights) -> tuple[RewardParts | Unscored, ...]:
        """What each of the group's G responses earned, in their order.

        Raises:
            RewardError: a reward actor does not start.
        """
        texts = [response.text for response in group.responses]  # ids and log-probs stay here
        job = _Job((texts, group.query, weights))
        self._waiting.append(job)
        if len(self._waiting) == 1:
            # At the end of this turn of the loop: groups that come together travel together.
            asyncio.get_running_loop().call_soon(self._dispatch)
        scored: list[RewardParts | Unscored] = []
        for index, outcome in enumerate(await job.outcomes):
            scored.append(await self._retry_alone(job, index, outcome) if isinstance(outcome, str) else outcome)
        return tuple(scored)

    def resize(self, num_actors: int) -> None:
        """Have `num_actors` >= 1 actors from now on. Actors too many finish what is at them first."""
        assert num_actors >= 1, "a pool needs an actor"
        taking = [member for member in self._members if not member.is_retired]
        for member in taking[num_actors:]:
            member.is_retired = True
            self._end_if_retired(member)
        for _ in range(num_actors - len(taking)):
            self._members.append(self._start_member(self._config.num_cpus))
        self._dispatch()

    def close(self) -> None:
        """Kill the actors. Cancel groups in progress first: they would wait for ever."""
        for call in self._calls:
            call.cancel()
        for member in [*self._members, self._suspects_member]:
            if member is not None:
                ray.kill(member.actor)
        self._members.clear()
        self._suspects_member = None

    def _start_member(self, num_cpus: float) -> _Member:
        actor = start_actor(self._config, num_cpus)
        return _Member(actor, actor.__ray_ready__.remote())

    def _dispatch(self) -> None:
        """Give waiting groups to actors that have room, the least busy first; an actor's share of all that wait."""
        share = 0
        while self._waiting and (member := self._least_busy()) is not None:
            share = share or math.ceil(sum(job.size for job in self._waiting) / self.num_actors)
            member.num_calls += 1
            call = asyncio.create_task(self._call(member, self._take_batch(min(share, BATCH_RESPONSES))))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _least_busy(self) -> _Member | None:
        """Of the actors that take another call the one with the fewest responses; None when none does."""
        free = [m for m in self._members if not m.is_retired and m.num_calls < CALLS_PER_ACTOR]
        return min(free, key=lambda m: (m.num_calls, m.num_responses), default=None)

    def _take_batch(self, room: int) -> list[_Job]:
        """Groups from the front that have at most `room` responses together; at least one group."""
        batch: list[_Job] = []
        while self._waiting and (not batch or self._waiting[0].size <= room):
            batch.append(self._waiting.popleft())
            room -= batch[-1].size
        return batch

    async def _call(self, member: _Member, batch: Sequence[_Job]) -> None:
        """Score a batch on an actor and hand every job its outcomes."""
        num_responses = sum(job.size for job in batch)
        member.num_responses += num_responses
        try:
            replies = await self._ask(member, [job.request for job in batch], member.num_responses)
            for job, outcomes in zip(batch, replies, strict=True):
                _settle(job, outcomes)
        except RewardError as error:
            for job in batch:
                if not job.outcomes.done():
                    job.outcomes.set_exception(error)
        except _ActorFailed as failure:
            self._replace(member)
            for job in batch:
                _settle(job, [str(failure)] * job.size)
        finally:
            member.num_calls -= 1
            member.num_responses -= num_responses
            self._end_if_retired(member)
            self._dispatch()

    async def _ask(self, member: _Member, requests: Sequence[GroupRequest], num_at_actor: int) -> list[list[Outcome]]:
        """
        Raises:
            RewardError: the actor did not start.
            _ActorFailed: it died, or was not done in time for `num_at_actor` responses.
        """
        await _up(member)  # outside the deadline: a process may start slowly on a busy machine
        deadline_s = DEADLINE_TIMEOUTS * self._config.response_timeout_s * num_at_actor
        try:
            async with asyncio.timeout(deadline_s):
                return unpack_outcomes(await member.actor.score.remote(*pack(requests)))
        except TimeoutError:
            raise _ActorFailed(f"the reward actor was not done after {deadline_s:g} s") from None
        except RayError as error:
            # A remote error's own words come last, after its traceback; of a death the first line tells all.
            says = _lines(error)[-1 if isinstance(error, RayTaskError) else 0]
            raise _ActorFailed(f"{type(error).__name__}: {says}") from error

    async def _retry_alone(self, job: _Job, index: int, reason: str) -> RewardParts | Unscored:
        """The second and last try of one response, with nothing else at the actor that it may take along."""
        texts, query, weights = job.request
        async with self._suspect_lock:
            if self._suspects_member is None:
                # Without CPUs of its own: the machines may be full, and a suspect must not wait for ever.
                self._suspects_member = self._start_member(num_cpus=0)
            member = self._suspects_member
            try:
                ((outcome,),) = await self._ask(member, [([texts[index]], query, weights)], num_at_actor=1)
            except _ActorFailed as failure:
                self._suspects_member = None
                ray.kill(member.actor)
                outcome = str(failure)
        return outcome if isinstance(outcome, RewardParts) else Unscored(texts[index], (reason, outcome))

    def _replace(self, member: _Member) -> None:
        """A new actor in the place of a failed one; both of its calls may come here, the second finds it gone."""
        if member not in self._members:
            return
        ray.kill(member.actor)
        self._members.remove(member)
        if not member.is_retired:
            self._members.append(self._start_member(self._config.num_cpus))

    def _end_if_retired(self, member: _Member) -> None:
        if member.is_retired and not member.num_calls and member in self._members:
            ray.kill(member.actor)
            self._members.remove(member)


class _ActorFailed(Exception):
    """An actor died or is stuck; what was at it has no outcome."""


def _settle(job: _Job, outcomes: list[Outcome]) -> None:
    if not job.outcomes.done():  # its caller may have been cancelled
        job.outcomes.set_result(outcomes)


async def _up(member: _Member) -> None:
    """
    Raises:
        RewardError: the actor's process did not start.
    """
    try:
        await member.is_up
    except RayError as error:
        raise RewardError(
            f"A reward actor did not start: {_lines(error)[-1]} A module that rewards.custom names must be importable "
            "on every node; for other reasons look into the Ray worker logs."
        ) from error


def _lines(error: BaseException) -> list[str]:
    return [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
