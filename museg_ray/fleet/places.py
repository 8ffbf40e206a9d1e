"""Room in the cluster: reserved for the least crew of a run as one, and for each further member by itself.

Invariant: a run holds nothing of the cluster until all that it cannot do without has room at once. Else two runs that
start together may each hold what the other waits for, and neither would ever begin.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from museg_ray.clock import now_s
from museg_ray.config.schema import Config
from museg_ray.errors import ResourceError
from museg_ray.events import EventKind, EventSink

SAY_EVERY_S = 15.0
POLL_S = 0.5
"""Ray's own wait would keep a thread, and with it the end of this process, for as long as it takes."""
Needs = Mapping[str, float]
"""CPUs and GPUs that one process reserves."""


def needs(config: Config) -> dict[str, Needs]:
    """Of one process of each role."""
    rollout, learner = config.rollout, config.learner
    return {
        "rollout": {"CPU": rollout.num_cpus, "GPU": rollout.num_gpus},
        "reward": {"CPU": config.rewards.num_cpus},
        "clips": {"CPU": config.video.num_cpus},
        "learner": {"CPU": learner.num_cpus, "GPU": learner.num_gpus},
    }


class Place:
    """Room for the processes of one role, as near to one another as can be."""

    def __init__(
        self, group: PlacementGroup, first: int, say: Callable[[str], None], leave: Callable[[], None]
    ) -> None:
        self._group, self._first, self._say, self._leave = group, first, say, leave
        self._is_left = False

    async def ready(self, what: str, limit_s: float = math.inf) -> None:
        """Return once there is room; says every 15 s what is waited for, and what the cluster has.

        Args:
            what: waits, in words.
            limit_s: how long.

        Raises:
            ResourceError: there was none for so long.
        """
        began_s = said_s = now_s()
        while not await asyncio.to_thread(self._group.wait, POLL_S):
            waited_s = now_s() - began_s
            word = f"{what} waits for room since {waited_s:.0f} s: "
            if waited_s >= limit_s:
                word += (
                    f"{_arithmetic(self._group.bundle_specs)}. That is fleet.place_timeout_s: free it, ask for less, "
                )
                raise ResourceError(word + "or add machines.")
            if now_s() - said_s >= SAY_EVERY_S:
                said_s = now_s()
                self._say(word + _arithmetic(self._group.bundle_specs))

    def strategy(self, index: int = 0) -> PlacementGroupSchedulingStrategy | str:
        """For the process `index` of those that it is for."""
        return PlacementGroupSchedulingStrategy(self._group, self._first + index)

    def leave(self) -> None:
        """Nobody is in it any more."""
        if not self._is_left:
            self._is_left = True
            self._leave()


class Anywhere(Place):
    """Wherever Ray finds room, for actors that are used beside a run."""

    def __init__(self) -> None:
        self._is_left = True

    async def ready(self, what: str, limit_s: float = math.inf) -> None:
        """At once: nobody tells when the actor has room."""

    def strategy(self, index: int = 0) -> str:
        return "DEFAULT"


class Places:
    """All places of one run; used from one event loop."""

    def __init__(self, config: Config, events: EventSink) -> None:
        self._needs, self._events = needs(config), events
        self._limit_s = config.fleet.place_timeout_s
        self._num_ranks = config.learner.num_ranks
        self._least: dict[str, int] = {}
        """Where the least crew's bundles of a role begin, of roles that nobody has there."""

    async def reserve(self) -> None:
        """Wait until there is room for the least crew: one member of each, and all ranks of the learner.

        Raises:
            ResourceError: there was none for `fleet.place_timeout_s`.
        """
        roles = ("rollout", "reward", "clips", *["learner"] * self._num_ranks)
        self._group = placement_group([_bundle(self._needs[role]) for role in roles], strategy="PACK")
        self._least = {role: roles.index(role) for role in roles}
        await Place(self._group, 0, self._say, lambda: None).ready("the run", self._limit_s)

    def take(self, role: str) -> Place:
        """A place of the least crew where nobody is in it, else one of its own, which may have to wait."""
        if (first := self._least.pop(role, None)) is not None:
            return Place(self._group, first, self._say, lambda: self._least.update({role: first}))
        count = self._num_ranks if role == "learner" else 1
        group = placement_group([_bundle(self._needs[role])] * count, strategy="PACK")
        return Place(group, 0, self._say, lambda: remove_placement_group(group))

    def _say(self, text: str) -> None:
        self._events(EventKind.WAIT, text)


def _bundle(amounts: Needs) -> dict[str, float]:
    """As Ray takes it: not empty."""
    return {kind: amount for kind, amount in amounts.items() if amount} or {"CPU": 0.001}


def _arithmetic(bundles: Sequence[Needs]) -> str:
    """`it needs 4 CPU, 2 GPU at once; of the cluster's 8 CPU, 1 GPU are free 3 CPU, 0 GPU`."""
    kinds = sorted({kind for bundle in bundles for kind in bundle})
    wanted = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in kinds}
    has, free = ray.cluster_resources(), ray.available_resources()
    shown = [", ".join(f"{of.get(kind, 0.0):g} {kind}" for kind in kinds) for of in (wanted, has, free)]
    return f"it needs {shown[0]} at once; the cluster has {shown[1]}, of which {shown[2]} are free"
