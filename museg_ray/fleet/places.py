"""Room in the cluster: reserved for the least crew of a run as one, and for each further member by itself.

Invariant: a run holds nothing of the cluster until all that it cannot do without has room at once. Else two runs that
start together may each hold what the other waits for, and neither would ever begin.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from museg_ray.clock import now_s
from museg_ray.config.schema import Config
from museg_ray.errors import ResourceError
from museg_ray.events import EventKind, EventSink

SAY_EVERY_S = 15.0
POLL_S = 0.5
WHO = {"rollout": "a rollout actor", "reward": "a reward actor", "clips": "a clip actor", "learner": "the learner"}
"""Waits, in words."""
Needs = Mapping[str, float]
"""CPUs and GPUs that one process reserves."""
ROLE_AMOUNT = 0.001
"""Of the resource that a cluster may define for a role, under the role's name: so little that it bounds no number."""


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
    """Room for the processes of one role, as near to one another as can be. Ask `strategy` once it is `ready`."""

    is_least = False
    """It is the least crew's: whoever is there leaves last, since the run keeps it."""

    async def ready(self, limit_s: float = math.inf) -> None:
        """Return once there is room.

        Raises:
            ResourceError: there was none for so long.
        """

    def strategy(self, index: int = 0) -> PlacementGroupSchedulingStrategy | str:
        """For the process `index` of those that it is for."""
        return "DEFAULT"

    def leave(self) -> None:
        """Nobody is in it any more, or will be."""


ANYWHERE = Place()
"""Wherever Ray finds room, for actors that are used beside a run; nobody tells when there is."""


class Reserved(Place):
    """A placement group of its own, or the least crew's bundles."""

    def __init__(self, places: "Places", role: str) -> None:
        self._places, self._role = places, role
        self._group: PlacementGroup | None = None
        self._indices = range(0)
        self._is_left = False

    async def ready(self, limit_s: float = math.inf) -> None:
        began_s, words = now_s(), self._places.words(self._role)
        while not self._has_room():
            await asyncio.sleep(POLL_S)
            assert self._group is not None
            words.speak(now_s() - began_s, limit_s, self._group, next_word_factor=2.0)

    def _has_room(self) -> bool:
        """Look once more; the least crew's bundles are taken whenever they are free, also while it waits elsewhere.

        Raises:
            ResourceError: nobody waits for it any more, or its group is gone.
        """
        if self._is_left:
            raise ResourceError(f"{WHO[self._role]} is not wanted any more.")
        if not self.is_least and (indices := self._places.least.pop(self._role, None)) is not None:
            self._give_up_own()
            self._group, self._indices, self.is_least = self._places.group, indices, True
        if self._group is None:
            bundles = self._places.bundles(self._role)
            self._group, self._indices = placement_group(bundles, strategy="PACK"), range(len(bundles))
        return _are_placed(self._group, self._indices)

    def strategy(self, index: int = 0) -> PlacementGroupSchedulingStrategy:
        assert self._group is not None, "ready() comes first"
        return PlacementGroupSchedulingStrategy(self._group, self._indices[index % len(self._indices)])

    def leave(self) -> None:
        if self._is_left:
            return
        self._is_left = True
        if self.is_least:
            self._places.least[self._role] = self._indices
        else:
            self._give_up_own()

    def _give_up_own(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)


class _Words:
    """What is said of one wait, or of all of one role: again and again, each time after a longer while."""

    def __init__(self, what: str, events: EventSink) -> None:
        self._what, self._events = what, events
        self._next_s, self._pause_s = now_s() + SAY_EVERY_S, SAY_EVERY_S

    def speak(self, waited_s: float, limit_s: float, group: PlacementGroup, next_word_factor: float) -> None:
        """
        Raises:
            ResourceError: it has waited for `limit_s`.
        """
        is_late = waited_s >= limit_s
        if not is_late and (now_s() < self._next_s or waited_s < SAY_EVERY_S):
            return
        text = f"{self._what} waits for room since {waited_s:.0f} s: {_arithmetic(group.bundle_specs)}"
        if is_late:
            raise ResourceError(f"{text}. That is fleet.place_timeout_s: free it, ask for less, or add machines.")
        self._events(EventKind.WAIT, text)
        self._pause_s *= next_word_factor
        self._next_s = now_s() + self._pause_s


class Places:
    """All places of one run; used from one event loop."""

    def __init__(self, config: Config, events: EventSink) -> None:
        self._needs, self._events = needs(config), events
        self._limit_s = config.fleet.place_timeout_s
        self._num_ranks = config.learner.num_ranks
        self._words: dict[str, _Words] = {}
        self.least: dict[str, range] = {}
        """The least crew's bundles of a role in `group`, of roles that nobody has there."""
        self.group: PlacementGroup | None = None

    async def reserve(self) -> None:
        """Wait until there is room for the least crew: one member of each, and all ranks of the learner.

        Raises:
            ResourceError: there was none for `fleet.place_timeout_s`.
        """
        bundles, least = list[dict[str, float]](), dict[str, range]()
        for role in ("learner", "rollout", "reward", "clips"):
            own = self.bundles(role)
            least[role] = range(len(bundles), len(bundles) + len(own))
            bundles += own
        self.group = placement_group(bundles, strategy="PACK")
        began_s, words = now_s(), _Words("the run", self._events)
        while not _are_placed(self.group, range(len(bundles))):
            await asyncio.sleep(POLL_S)
            words.speak(now_s() - began_s, self._limit_s, self.group, next_word_factor=1.0)
        self.least = least

    def take(self, role: str) -> Place:
        """One of the least crew's where nobody is, else one of its own, which may have to wait."""
        return Reserved(self, role)

    def free(self) -> dict[str, float]:
        """CPUs and GPUs for further members: what nobody has reserved, and what the run keeps and nobody uses."""
        free: dict[str, float] = dict(ray.available_resources())
        for role in self.least:
            for kind, amount in self._needs[role].items():
                free[kind] = free.get(kind, 0.0) + amount * self.count(role)
        return free

    def bundles(self, role: str) -> list[dict[str, float]]:
        """Of all processes of a role that belong together, as Ray takes them: none is empty.

        The learner's ranks share one where a machine can hold them all: Ray never splits a bundle, while those of one
        group that it is to pack may lie on several machines, and ZeRO 3 sends all weights between ranks in each pass.
        Where the cluster has a resource of the role's name, they lie on machines that offer it.
        """
        one = {kind: amount for kind, amount in self._needs[role].items() if amount} or {"CPU": 0.001}
        if role in ray.cluster_resources():
            one[role] = ROLE_AMOUNT
        count = self.count(role)
        together = {kind: amount * count for kind, amount in one.items()}
        return [together] if _fits_a_machine(together) else [one] * count

    def count(self, role: str) -> int:
        return self._num_ranks if role == "learner" else 1

    def words(self, role: str) -> _Words:
        """All members of a role that wait share them: a thousand would say the same."""
        return self._words.setdefault(role, _Words(WHO[role], self._events))


def _fits_a_machine(bundle: Needs) -> bool:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(there.get(kind, 0.0) >= amount for kind, amount in bundle.items()) for there in machines)


def _are_placed(group: PlacementGroup, indices: range) -> bool:
    """Whether these bundles have a machine. Others of the group may have lost theirs.

    Not `PlacementGroup.wait`: it takes whole seconds alone, and each call leaves a waiter in Ray's head for as long as
    the group is not ready (Ray 2.60).

    Raises:
        ResourceError: the group is gone.
    """
    table = placement_group_table(group)
    if table.get("state", "REMOVED") == "REMOVED":
        raise ResourceError("The run's place in the cluster is gone: somebody has removed its placement group.")
    return all(table["bundles_to_node_id"].get(index) for index in indices)


def _arithmetic(bundles: Sequence[Needs]) -> str:
    """`it needs 4 CPU, 2 GPU at once; of the cluster's 8 CPU, 1 GPU are free 3 CPU, 0 GPU`."""
    kinds = sorted({kind for bundle in bundles for kind in bundle})
    wanted = {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in kinds}
    has, free = ray.cluster_resources(), ray.available_resources()
    shown = [", ".join(f"{of.get(kind, 0.0):g} {kind}" for kind in kinds) for of in (wanted, has, free)]
    return f"it needs {shown[0]} at once; the cluster has {shown[1]}, of which {shown[2]} are free"
