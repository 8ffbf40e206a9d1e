"""The handle on a running job: a mailbox on the cluster that the driver looks into, found by the run's name.

    museg scale RUN --rollout 3 ──▶ Mailbox (an actor of the run's driver) ◀── driver: takes the wish, answers it
    museg status RUN            ◀── the last status that the driver left there

The driver may be busy, or on a machine that nobody can reach; the mailbox is an actor of its own, on whatever machine.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle

NAMESPACE = "museg"
ANSWER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks of a running job."""

    kind: str
    """`scale` or `stop`."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """`scale`: members wanted, by crew."""


class Mailbox:
    """Holds wishes until the driver takes them, its answers, and its last status."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._wishes: asyncio.Queue[tuple[int, Wish]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[str]] = {}
        self._num_wishes = 0

    async def leave_status(self, status: dict[str, Any]) -> None:
        self._status = status

    async def status(self) -> dict[str, Any]:
        return self._status

    async def wish(self, wish: Wish) -> str:
        """The driver's answer, in words.

        Raises:
            TimeoutError: it has not answered within `ANSWER_TIMEOUT_S`.
        """
        number = self._num_wishes
        self._num_wishes += 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._wishes.put((number, wish))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await answer
        finally:
            del self._answers[number]

    async def next_wish(self) -> tuple[int, Wish]:
        """For the driver: waits for the next one."""
        return await self._wishes.get()

    async def answer(self, number: int, text: str) -> None:
        if number in self._answers and not self._answers[number].done():  # whoever asked may have gone
            self._answers[number].set_result(text)


class Control(Protocol):
    """The driver's side of a mailbox."""

    async def leave_status(self, status: dict[str, Any]) -> None: ...

    async def next_wish(self) -> tuple[int, Wish]: ...

    async def answer(self, number: int, text: str) -> None: ...


class RayControl:
    """A mailbox on Ray. It ends with the driver."""

    def __init__(self, run_name: str) -> None:
        # No CPU: it must find a place on a full cluster. A name that a run before has left must not keep this one off.
        options = {"name": mailbox_name(run_name), "namespace": NAMESPACE, "num_cpus": 0, "max_concurrency": 1000}
        self._mailbox: ActorHandle = ray.remote(Mailbox).options(**options).remote()

    async def leave_status(self, status: dict[str, Any]) -> None:
        await self._mailbox.leave_status.remote(status)

    async def next_wish(self) -> tuple[int, Wish]:
        number, wish = await self._mailbox.next_wish.remote()
        return number, wish

    async def answer(self, number: int, text: str) -> None:
        await self._mailbox.answer.remote(number, text)


def mailbox_name(run_name: str) -> str:
    return f"run {run_name}"


def running_runs() -> list[str]:
    """Names of the runs that have a mailbox on the cluster that this process has joined."""
    named = ray.util.list_named_actors(all_namespaces=True)
    prefix = mailbox_name("")
    return sorted(
        actor["name"].removeprefix(prefix)
        for actor in named
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    )
