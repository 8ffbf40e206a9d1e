"""What happens to a run beside its steps: who joined, who was lost and why, what was pushed, scaled, taken back."""

from enum import StrEnum
from typing import Protocol


class EventKind(StrEnum):
    START = "start"
    """A driver begins, or goes on after one that died; none of that one's members is there any more."""
    JOIN = "join"
    """A member serves from now on."""
    LOSS = "loss"
    """A member, or the learner, is gone without having been asked to go."""
    DRAIN = "drain"
    """A member gets nothing new and leaves when it is idle."""
    LEAVE = "leave"
    """A member has left."""
    WAIT = "wait"
    """Somebody waits for room in the cluster, for another process that reads the same video, or for what takes longer
    than usual."""
    REQUEUE = "requeue"
    """Issues of a lost member go to the others."""
    RESTART = "restart"
    """The learner goes on from a checkpoint."""
    PUSH = "push"
    """New weights serve."""
    SCALE = "scale"
    """Another number of members is wanted."""
    REFILL = "refill"
    """A step trains fewer groups than it could: it has replaced as many as it may."""
    TRUTH = "truth"
    """A query's truth was cut at the end of its video file, or its annotated length is that of another file."""
    PHASE = "phase"
    CHECKPOINT = "checkpoint"
    CHANGE = "change"
    """A run goes on with other settings or data than before."""
    REWIND = "rewind"
    """Training was taken back to a checkpoint."""


class EventSink(Protocol):
    """Takes an event: what kind, in words, and its numbers."""

    def __call__(self, kind: EventKind, text: str, **fields: object) -> None: ...


def no_events(kind: EventKind, text: str, **fields: object) -> None:
    """A sink for parts that are used beside a run, whose events nobody follows."""
