"""Who a learner process is among all of a run. Without DeepSpeed, which the driver must not import."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rank:
    """One learner process among all of a run."""

    index: int = 0
    count: int = 1
    host: str = ""
    """Where rank 0's store listens; empty with one rank, which meets nobody."""
    port: int = 0
