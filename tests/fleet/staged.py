"""A rollout pool over workers that do what a test tells them, in simulated time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from museg_ray.config.schema import Config, FleetConfig
from museg_ray.events import EventKind
from museg_ray.fleet.errors import MemberLost
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import RolloutPool
from museg_ray.types import GroundingQuery, Group, Issue, Response
from museg_ray.weights.channel import Confirmed
from tests.simulated import run_simulated

SAMPLING = Sampling(group_size=2, temperature=1.0, max_completion_tokens=8)
Hook = Callable[..., Awaitable[None]]


async def _nothing(*_: Any) -> None:
    pass


class StagedWorker:
    """Each of its calls takes a while, and awaits a hook first, which may raise, wait, or kill it."""

    def __init__(self, name: str, takes_s: float) -> None:
        self.name, self.takes_s = name, takes_s
        self.version, self.logprob = 0, 0.0
        self.seen: list[Issue] = []
        """Sampled here, or begun; not those that joiners are compared on."""
        self.is_leaving = self.is_least = False
        self.on_placed: Hook = _nothing
        self.on_start: Hook = _nothing
        self.on_generate: Hook = _nothing
        self.on_update: Hook = _nothing
        self._dead = asyncio.Event()
        self._is_closed = False

    def die(self) -> None:
        self._dead.set()

    async def placed(self) -> bool:
        await self.on_placed()
        return self.is_least

    async def start(self) -> None:
        await self.on_start()

    async def ping(self) -> bool:
        self._check_alive()
        return self.is_leaving

    async def close(self) -> None:
        self._is_closed = True
        self.die()

    def kill(self) -> None:
        self.die()

    async def generate(self, issue: Issue, prompt_ids: Any, clip: Any, sampling: Sampling) -> Group:
        version = self.version
        if sampling.temperature:
            self.seen.append(issue)
        await self.on_generate(issue, sampling)
        await self._pass(self.takes_s)
        response = Response((1,) * 4, np.full(4, self.logprob, np.float32), "x", finished=True)
        return Group(issue, "clip", 1.0, tuple(prompt_ids), (response,) * sampling.group_size, version)

    node = "here"

    async def update_weights(self, version: int, weights: Any) -> Confirmed:
        await self.on_update(version)
        await self._pass(0.1)
        self.version = version
        return Confirmed(version)

    async def _pass(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._dead.wait(), seconds)
        except TimeoutError:
            return
        self._check_alive()

    def _check_alive(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"{self.name} was closed under a call")
        if self._dead.is_set():
            raise MemberLost(f"{self.name} died")


class Stage:
    """To be made on the loop that it is used on."""

    def __init__(
        self, num_actors: int = 2, takes_s: float = 1.0, room: int = 4, timeout_s: float = 1800.0, **limits: Any
    ) -> None:
        self.workers: list[StagedWorker] = []
        self.events: list[tuple[EventKind, str]] = []
        self.set_up: Callable[[StagedWorker], None] = lambda worker: None
        """Is called with every worker that is made."""
        self._takes_s = takes_s
        config = Config(fleet=FleetConfig(**limits))
        rollout = replace(config.rollout, num_actors=num_actors, max_num_seqs=room, request_timeout_s=timeout_s)
        weights = replace(config.weights, timeout_s=timeout_s)
        self._config = replace(config, rollout=rollout, weights=weights)
        self._pool: RolloutPool | None = None

    @property
    def pool(self) -> RolloutPool:
        """Made with the first look at it, so that `set_up` comes before."""
        if self._pool is None:
            self._pool = RolloutPool(self._config, Path("/model"), self._note, self._make)
        return self._pool

    def sample(self, number: int) -> "asyncio.Task[Group]":
        return asyncio.create_task(self.pool.sample(an_issue(number), [7, 8, 9], None, SAMPLING))  # type: ignore[arg-type]

    def states(self) -> list[str]:
        return [member.state for member in self.pool.status().members]

    def texts(self, kind: EventKind) -> list[str]:
        return [text for each, text in self.events if each is kind]

    def _make(self) -> StagedWorker:
        worker = StagedWorker(f"worker-{len(self.workers)}", self._takes_s)
        self.set_up(worker)
        self.workers.append(worker)
        return worker

    def _note(self, kind: EventKind, text: str, **_: object) -> None:
        self.events.append((kind, text))


def an_issue(number: int) -> Issue:
    query = GroundingQuery(f"q/{number}", f"/v/{number}.mp4", "?", ((0.0, 1.0),))
    return Issue(number, query, "only", seed=1000 + number)


def simulated(work: Coroutine[Any, Any, None]) -> None:
    run_simulated(work)
