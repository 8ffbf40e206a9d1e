"""What a running job says of itself: one record, for `museg status` and for whoever reads it as JSON."""

import os
import socket
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from museg_ray.clock import now_s
from museg_ray.config.schema import Config
from museg_ray.events import EventKind
from museg_ray.rewards.phases import phase_steps
from museg_ray.runs.books import Books
from museg_ray.train.parts import Parts
from museg_ray.train.work import StepWork

if TYPE_CHECKING:
    from museg_ray.train.step import StepMaker

TOLD = tuple(kind.value for kind in EventKind if kind not in (EventKind.PUSH, EventKind.CHECKPOINT, EventKind.REQUEUE))
"""Events that a status tells of: what comes with every step is left out."""
NUM_EVENTS = 8
MOST_NAMED = 4


def run_status(
    config: Config, parts: Parts, books: Books, step: int, steps: "StepMaker", works: Sequence[StepWork], doing: str
) -> dict[str, Any]:
    """Plain values, ready for JSON.

    Args:
        config: of the run.
        parts: as they are now.
        books: of the run.
        step: the last one that is done.
        steps: makes them.
        works: of the steps that are issued, in their order.
        doing: what is done beside training; empty: nothing.
    """
    recent, phases = [event for event in books.events.recent if event["kind"] in TOLD], config.train.phases
    return {
        "run": books.run_dir.name,
        "folder": str(books.run_dir),
        "driver": f"pid {os.getpid()} on {socket.gethostname()}",
        "unix_s": time.time(),
        "step": step,
        "total_steps": config.total_steps,
        "phase": next((s.phase for s in phase_steps(phases, step + 1)), phases[-1]).name,
        "weight_version": steps.version,
        "max_staleness": config.train.max_staleness,
        "crews": {role: crew.status().as_dict() for role, crew in parts.crews.items()},
        "queues": queue_sizes(parts, works),
        "waits": doing or _who_waits(works[0] if works else None, steps.is_learning, config.train.max_staleness),
        "alarms": books.raised_alarms,
        "events": recent[-NUM_EVENTS:],
    }


def queue_sizes(parts: Parts, works: Iterable[StepWork]) -> dict[str, int]:
    """Groups that wait at this moment, or are at work: for a rollout, for a score, for their update."""
    num_ready = sum(work.is_complete.is_set() for work in works)
    return {"rollout": parts.rollouts.num_waiting, "reward": parts.rewards.num_waiting, "learner": num_ready}


def waited_for(parts: Parts) -> str:
    """Who is asked for something, or not up, at this moment; the longest wait first."""
    now, found = now_s(), list[tuple[float, str]]()
    for crew in parts.crews.values():
        for member in crew.status().members:
            if member.call:
                waited_s = now - member.call_since_s
                found.append((waited_s, f"{member.name} {member.call} since {waited_s:.0f} s"))
            elif member.state in ("starting", "waiting"):
                found.append((member.age_s, f"{member.name} {member.state} since {member.age_s:.0f} s"))
    named = [text for _, text in sorted(found, reverse=True)]
    named = [f"the learner's {parts.learner.doing}", *named] if parts.learner.doing else named
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return f"waited for {', '.join(named[:MOST_NAMED])}{more}" if named else "nobody is asked for anything"


def _who_waits(first: StepWork | None, is_learning: bool, max_staleness: int) -> str:
    if first is None:
        return "no step is under way"
    if is_learning:
        ahead = "works ahead" if max_staleness else "waits for it"
        return f"the learner is at work on step {first.step}; the fleet {ahead}"
    num_issues = len(first.open) + len(first.made) + len(first.failures)
    return f"the learner waits for {len(first.open)} of {num_issues} groups of step {first.step}"
