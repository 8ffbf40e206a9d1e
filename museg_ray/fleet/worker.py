"""What a crew needs of one member's process."""

from collections.abc import Collection
from typing import Any, Protocol

import ray

from museg_ray.fleet.places import Place


class Worker(Protocol):
    """One process, on whatever machine; or a fake. Its methods raise `MemberLost` once it is gone."""

    async def placed(self) -> bool:
        """Return when the cluster has room for it, for as long as that takes; True where the run keeps that room."""

    async def start(self) -> None:
        """Return when it can work.

        Raises:
            MusegError: it cannot start.
            MemberLost: it died meanwhile.
        """

    async def ping(self) -> bool:
        """True where it has been told that its machine will be taken away soon."""

    async def close(self) -> None:
        """End it in good order; what is inside fails."""

    def kill(self) -> None:
        """End it at once, whatever state it is in."""


class ActorWorker:
    """What is the same of all that are Ray actors."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._actor: Any = None

    async def placed(self) -> bool:
        await self._place.ready()
        return self._place.is_least

    async def close(self) -> None:
        """It holds nothing that would have to be put away."""

    def kill(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
        self._place.leave()


def leaving_nodes() -> Collection[str]:
    """Ids of the nodes that drain: preempted, or sent SIGTERM as Kubernetes and Slurm do; actors there live for a while
    (30 s by Ray's default) and get nothing new. Asked of the cluster's head, at 0.3 ms.

    Source: the call that Ray Train asks; `ray.nodes()` does not tell (Ray 2.60).
    """
    draining: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return draining.keys()
