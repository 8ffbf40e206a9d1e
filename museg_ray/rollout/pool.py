"""The rollout actors as one: each issue goes to the least busy, weights go to all, and what one loses another makes."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from museg_ray.config.schema import Config
from museg_ray.errors import MusegError, PoisonQueryError, RolloutError, WeightsLostError, WeightSyncError
from museg_ray.events import EventKind, EventSink
from museg_ray.fleet.crew import Crew, CrewPool
from museg_ray.fleet.deadlines import deadlines
from museg_ray.fleet.errors import MemberLost
from museg_ray.fleet.member import Member, MemberState
from museg_ray.fleet.places import ANYWHERE, Places
from museg_ray.rollout.actor import RolloutWorker
from museg_ray.rollout.engine import Sampling
from museg_ray.types import Group, Issue
from museg_ray.video.loader import ClipHandle
from museg_ray.weights.channel import Confirmed

MAX_DEATHS = 2
"""An issue that was aboard so many actors that died is sampled alone."""
PROBE_TOKENS = 8
PROBE_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class _Weights:
    """What every member that serves has, or is being given."""

    version: int
    content: Any


@dataclass(frozen=True, slots=True)
class Request:
    """What `sample` is asked."""

    issue: Issue
    prompt_ids: Sequence[int]
    clip: ClipHandle
    sampling: Sampling


class RolloutPool(CrewPool[RolloutWorker]):
    """For one event loop.

    Invariant: an issue that is given back by a lost actor is sampled by another under the same id and seed; one that
    ends the actors that sample it ends by itself (PoisonQueryError), and takes no other with it.
    """

    def __init__(
        self,
        config: Config,
        model_dir: Path,
        events: EventSink,
        make: Callable[[], Any] | None = None,
        places: Places | None = None,
    ) -> None:
        """Start `rollout.num_actors` actors.

        Args:
            config: of the run.
            model_dir: whose weights are version 0.
            events: are told of joins, losses and pushes.
            make: what stands in for a new `RolloutWorker`; None: a Ray actor with a vLLM engine.
            places: of the run; None: wherever Ray finds room.
        """
        self._config, self._events = config, events
        self._newest: _Weights | None = None
        self._published = asyncio.Event()
        self.num_waiting = 0
        """Issues that are being sampled or wait for it."""
        self._last: Request | None = None  # sampled: what joiners are compared on
        make_worker = make or (lambda: RolloutWorker(model_dir, config, places.take("rollout") if places else ANYWHERE))
        room = config.rollout.max_num_seqs
        self._crew = Crew("rollout", make_worker, config.fleet, deadlines(config), events, room, self._prepare)
        self.resize(config.rollout.num_actors)

    @property
    def version(self) -> int:
        """Version of the weights that members that serve sample from; those of the model folder are 0."""
        return self._newest.version if self._newest else 0

    @property
    def room(self) -> int:
        """Responses that the actors that are wanted sample at once."""
        return self._crew.num_wanted * self._config.rollout.max_num_seqs

    async def sample(self, issue: Issue, prompt_ids: Sequence[int], clip: ClipHandle, sampling: Sampling) -> Group:
        """The group of one issue. Who was issued first is sampled first.

        Args:
            prompt_ids: the chat prompt with one video placeholder, from `chat_prompt_ids`.
            clip: of the query's video; the actor opens it itself.

        Raises:
            VideoError: the clip left the store meanwhile, and its file can no longer be read.
            PoisonQueryError: the actors that sample it die of it.
            RolloutError: vLLM refused it.
            MusegError: all actors have failed.
        """
        self.num_waiting += 1
        try:
            return await self._sample(Request(issue, prompt_ids, clip, sampling))
        finally:
            self.num_waiting -= 1

    async def _sample(self, request: Request) -> Group:
        issue, sampling, deaths = request.issue, request.sampling, list[str]()
        while True:
            alone = len(deaths) >= MAX_DEATHS
            async with self._crew.lease(issue.issue_id, sampling.group_size, alone) as member:
                try:
                    group = await self._generate(member, f"sampling issue {issue.issue_id}", request)
                    self._last = request
                    return group
                except MemberLost as error:
                    self._crew.lose(member, str(error))
                    deaths.append(f"{member.name}: {error}")
            self._check_poison(issue, member, deaths)
            self._events(EventKind.REQUEUE, f"issue {issue.issue_id} goes to another actor", issue_id=issue.issue_id)

    @property
    def nodes(self) -> set[str]:
        """The machines of all that serve, or may be loading weights before they do."""
        return {member.worker.node for member in self._crew.members if member.worker.node}

    async def publish(self, version: int, weights: Any) -> list[Confirmed]:
        """Give all actors new weights at once, and wait until each that serves has confirmed them. Who fails is
        replaced; who joins gets the newest.

        Args:
            version: above all before.
            weights: what a channel has published.

        Returns:
            What they say; of those that were not lost.

        Raises:
            WeightsLostError: they are gone before any actor had them.
            WeightSyncError: no actor can load them.
        """
        self._newest = _Weights(version, weights)
        self._published.set()
        self._published = asyncio.Event()
        served = (MemberState.SERVING, MemberState.DRAINING)
        members = [member for member in self._crew.members if member.state in served]
        for member in members:  # now: in a moment one that drains may be idle, and would be closed under its push
            self._crew.hold(member)
        answers = await asyncio.gather(*(self._push(member, self._newest) for member in members))
        errors = [answer for answer in answers if isinstance(answer, WeightSyncError)]
        lost = [error for error in errors if isinstance(error, WeightsLostError)]  # no fault of theirs
        if lost or (errors and len(errors) == len(members)):
            raise (lost or errors)[0]
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, WeightSyncError):
                self._crew.lose(member, str(answer), by_jobs=False)
        text = f"weights {version} serve on {len(self._crew.serving)} actors"
        self._events(EventKind.PUSH, text, version=version)
        return [answer for answer in answers if isinstance(answer, Confirmed)]

    async def answers(self, request: Request) -> dict[str, Group]:
        """What each actor that serves says to the same request, by its name; of those that can."""
        members = self._crew.serving
        groups = await asyncio.gather(*(self._asked(member, request) for member in members))
        return {member.name: group for member, group in zip(members, groups, strict=True) if group is not None}

    def distrust(self, name: str, reason: str) -> None:
        """An actor is replaced; what is inside it goes to others."""
        for member in [member for member in self._crew.members if member.name == name]:
            self._crew.lose(member, reason, by_jobs=False)

    async def _generate(self, member: Member[RolloutWorker], what: str, request: Request) -> Group:
        """
        Raises:
            MemberLost: it died, or is stuck.
        """
        call = member.worker.generate(request.issue, request.prompt_ids, request.clip, request.sampling)
        return await member.run(what, call, self._crew.deadlines["generate"])

    async def _load(self, member: Member[RolloutWorker], weights: _Weights) -> Confirmed:
        """
        Raises:
            MemberLost: it died, or is stuck.
        """
        call = member.worker.update_weights(weights.version, weights.content)
        return await member.run(f"loading weights {weights.version}", call, self._crew.deadlines["update_weights"])

    def _check_poison(self, issue: Issue, member: Member[RolloutWorker], deaths: Sequence[str]) -> None:
        """Twice, and the last time with nothing else aboard: then it was this one.

        Raises:
            PoisonQueryError
        """
        if len(deaths) >= MAX_DEATHS and member.num_suspects == 1:
            raise PoisonQueryError(
                f"Query {issue.query.query_id} about {issue.query.video} ended every rollout actor that sampled it: "
                f"{'; '.join(deaths)}."
            )

    async def _push(self, member: Member[RolloutWorker], weights: _Weights) -> Confirmed | WeightSyncError | None:
        """What it says, or why its engine cannot have them; a member that dies of it is lost. It is held, and let go at
        the end."""
        try:
            confirmed = await self._load(member, weights)
        except MemberLost as error:
            self._crew.lose(member, str(error), by_jobs=False)
        except WeightSyncError as error:
            member.is_fit = False  # it has no weights to sample from
            return type(error)(f"{member.name} did not load weights {weights.version}: {error}")
        else:
            member.is_fit = confirmed.version == weights.version
            if not member.is_fit:
                told = f"{member.name} was given weights {weights.version} but reports {confirmed.version}."
                return WeightSyncError(told)
            return confirmed
        finally:
            self._crew.let_go(member)
        return None

    # who joins --------------------------------------------------------------------------------------------------------

    async def _prepare(self, member: Member[RolloutWorker]) -> str:
        """Load the newest weights and compare with one that serves, until no push comes between.

        Raises:
            WeightSyncError, RolloutError: it cannot load them, or computes something else.
            MemberLost: it died, or is stuck.
        """
        while True:
            newest, published = self._newest, self._published
            try:
                if newest is not None:
                    await self._load(member, newest)
                compared = await self._compare(member, newest)
            except WeightsLostError as error:  # with a learner that is being replaced: it will publish others
                await self._wait_for_others(published, error)
                continue
            if self._newest is newest:
                return f", weights {self.version}, {compared}"

    async def _wait_for_others(self, published: asyncio.Event, lost: WeightsLostError) -> None:
        """
        Raises:
            WeightsLostError: nobody publishes others; training is over, or the learner does not come back.
        """
        try:
            async with asyncio.timeout(self._config.learner.start_timeout_s + self._config.learner.step_timeout_s):
                await published.wait()
        except TimeoutError:
            raise lost from None

    async def _compare(self, member: Member[RolloutWorker], weights: _Weights | None) -> str:
        """
        Raises:
            RolloutError: it gives other log-probs to the same tokens than the fleet.
        """
        request = self._last
        while self._newest is weights and request is not None:
            peer = next(iter(self._crew.serving), None)
            theirs = await self._answer(peer, request) if peer is not None else None
            mine = await self._answer(member, request)
            if peer is None or theirs is None or mine is None:
                break
            if mine.weight_version == theirs.weight_version:
                return self._compared(member.name, mine, peer.name, theirs)
            await asyncio.sleep(PROBE_AGAIN_S)  # the peer is still being given them
        return "compared with nobody"

    def _compared(self, name: str, mine: Group, peer: str, theirs: Group) -> str:
        gap, limit = _gap(mine, theirs), self._config.train.max_logprob_gap
        if not gap <= limit:
            raise RolloutError(
                f"{name} gives log-probs to the same tokens that differ from {peer}'s by {gap:.2e} nats on average, "
                f"more than train.max_logprob_gap = {limit:.0e}, under the same weights {mine.weight_version}."
            )
        return f"log-probs {gap:.1e} from {peer}'s"

    async def _answer(self, member: Member[RolloutWorker], request: Request) -> Group | None:
        """A few greedy tokens to what was sampled last."""
        # Another first token than a training prompt's: what the engine caches of this one must meet no other.
        prompt_ids, greedy = [request.prompt_ids[1], *request.prompt_ids[1:]], Sampling(1, 0.0, PROBE_TOKENS)
        return await self._asked(member, replace(request, prompt_ids=prompt_ids, sampling=greedy))

    async def _asked(self, member: Member[RolloutWorker], request: Request) -> Group | None:
        """None where it cannot answer that, or is gone, which shows at once elsewhere."""
        try:
            return await self._generate(member, "being compared", request)
        except (MemberLost, MusegError):
            return None
        except Exception:
            if member.state is MemberState.GONE:  # what an engine says that is being ended may be anything
                return None
            raise


def _gap(mine: Group, theirs: Group) -> float:
    """Mean |difference| of the log-probs of the tokens up to the first that is another one, in nats."""
    pairs = list(zip(mine.responses[0].token_ids, theirs.responses[0].token_ids, strict=False))
    num_same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
    if num_same == 0:
        return float("inf")
    differences = mine.responses[0].logprobs[:num_same] - theirs.responses[0].logprobs[:num_same]
    return float(np.abs(differences).mean())
