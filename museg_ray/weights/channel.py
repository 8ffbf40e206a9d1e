"""How a run's weights get from the learner to the engines: what the driver asks of any way there."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from museg_ray.weights.layout import Layout
from museg_ray.weights.spans import Span


class WritePlace(NamedTuple):
    """Where one rank writes what it has of the weights."""

    file: Path
    """Of its machine."""
    rank: int
    """Its number among the ranks of that machine."""
    num_ranks: int


class Confirmed(NamedTuple):
    """What an engine says of new weights."""

    version: int
    """That its process now reports."""
    pause_s: float = 0.0
    """Until its requests stood still; 0 where it had none."""
    copy_s: float = 0.0
    """Out of the file."""
    resume_s: float = 0.0


class WeightSource(Protocol):
    """The learner, as a channel sees it."""

    async def weight_layout(self) -> Layout: ...

    async def nodes(self) -> list[str]:
        """The machine of each rank, by Ray's id."""

    async def write_weights(self, version: int, places: Sequence[WritePlace]) -> list[list[Span]]:
        """Each rank writes what it has of the present weights, which are `version` from now on; which bytes that is."""


Weights = Callable[[str], Awaitable[Path]]
"""One version that has been published: machine, by Ray's id -> its file, also of a machine that was not there then.

Raises:
    WeightsLostError: the machines that had them are gone, or have others by now.
    MemberLost: this machine is gone, or cannot get them.
    ResourceError: it has no room for them.
"""


class WeightChannel(Protocol):
    """From one learner to any number of engines; for one event loop."""

    phases_s: Mapping[str, float]
    """How long each phase of the last push took: `prepare`, `write`, `transfer`."""

    async def reserve(self, nodes: Collection[str]) -> None:
        """Take the room on the learner's machines and these, so that no push fails for it.

        Raises:
            ResourceError: there is none.
        """

    async def publish(self, version: int, nodes: Collection[str]) -> Weights:
        """Have the learner's weights on all machines of engines.

        Args:
            version: above all before.
            nodes: of the engines.

        Raises:
            LearnerLostError: a rank is gone, or stuck.
            WeightsLostError: a machine of the learner's is.
        """

    async def close(self) -> None: ...
