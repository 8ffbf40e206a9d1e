"""Which actor was there when, and how it left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("rollout", "reward", "clips", "learner")
"""In the order in which they are shown."""


@dataclass(slots=True)
class Stay:
    """The time of one member, in minutes since the run's first event."""

    member: str
    role: str
    from_min: float
    to_min: float
    was_lost: bool = False


def stays_of(events: Sequence[Mapping[str, Any]]) -> list[Stay]:
    """One a member that served, by role and in the order of joining; a driver that was started again names its members
    anew."""
    if not events:
        return []
    first_s, last_s = events[0]["unix_s"], events[-1]["unix_s"]
    stays: list[Stay] = []
    here: dict[str, Stay] = {}
    for event in events:
        now_min = (event["unix_s"] - first_s) / 60
        if event["kind"] == "start":
            for stay in here.values():  # went with the driver before
                stay.to_min, stay.was_lost = now_min, True
            here.clear()
        elif event["kind"] == "join":
            stay = Stay(event["member"], event["role"], now_min, (last_s - first_s) / 60)
            here[stay.member] = stay
            stays.append(stay)
        elif event["kind"] in ("loss", "leave") and event.get("member") in here:
            gone = here.pop(event["member"])
            gone.to_min, gone.was_lost = now_min, event["kind"] == "loss"
    return sorted(stays, key=lambda stay: (ROLES.index(stay.role), stay.from_min))
