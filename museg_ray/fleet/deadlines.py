"""How long whoever calls an actor waits for it: the one table of all calls, and the one way to wait.

Invariant: no call of an actor is awaited without its row. A process that is stopped, or on a machine that no longer
answers, ends no call; without a deadline the run would stand still for ever, and nobody would say why.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from museg_ray.config.schema import Config
from museg_ray.fleet.errors import MemberLost

Result = TypeVar("Result")


class DeadlineMissed(MemberLost):
    """The call was not done in time; whoever it was for is stuck."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Of one call."""

    limit_s: float
    setting: str = ""
    """That it comes from; empty: it has none."""

    def times(self, count: float) -> "Deadline":
        """For `count` calls that wait for one another."""
        return replace(self, limit_s=self.limit_s * count)


FIRST_ANSWER = Deadline(1800.0)
"""For a process that has its place to come up: a job's environment may have to be installed on its machine first."""
PREPARE = Deadline(3600.0)
"""For one video: its reader has deadlines of its own, which follow from its length and size (video.deadline_s)."""
FETCH = Deadline(600.0)
"""For a clip to come from another machine."""
CLOSE = Deadline(20.0)
"""For a member to end by itself; then it is killed."""
ANSWER = Deadline(30.0)
"""For a driver to answer a person's wish."""
ASKED = Deadline(35.0)
"""For the mailbox to bring that answer."""
SCORE_TIMEOUTS = 4.0
"""A reward actor ends a call by itself after at most three `response_timeout_s`; the deadline is for a process that
does nothing at all."""
IN_A_STEP = (
    *("load", "update", "gaps", "weight_layout", "start_phase"),
    *("begin_checkpoint", "finish_checkpoint", "export_model"),
)
"""Calls of the learner's ranks that may take as long as a step."""
UNREAD_S = 1.0
"""An answer may lie there unread, where this process has stood still itself: stopped, or its machine suspended."""


def deadlines(config: Config) -> Mapping[str, Deadline]:
    """By role and method, of every call of every actor of a run."""
    rollout, learner, fleet = config.rollout, config.learner, config.fleet
    ping = Deadline(fleet.ping_timeout_s, "fleet.ping_timeout_s")
    request = Deadline(
        rollout.request_timeout_s, "rollout.request_timeout_s, which may be too short for rollout.max_completion_tokens"
    )
    step = Deadline(learner.step_timeout_s, "learner.step_timeout_s")
    waits_s = request.limit_s if rollout.on_push == "wait" else 0.0  # for the groups under way
    push = Deadline(config.weights.timeout_s, "weights.timeout_s")
    score = Deadline(SCORE_TIMEOUTS * config.rewards.response_timeout_s, "rewards.response_timeout_s, four times")
    return {
        "rollout.start": Deadline(FIRST_ANSWER.limit_s + rollout.start_timeout_s),
        "rollout.generate": request,
        "rollout.update_weights": replace(push, limit_s=push.limit_s + waits_s),
        "reward.score": score,
        "clips.prepare": PREPARE,
        "clips.send": FETCH,
        "learner.start": Deadline(learner.start_timeout_s, "learner.start_timeout_s"),
        **{f"learner.{method}": step for method in IN_A_STEP},
        "learner.write_weights": push,
        "weights.begin": push.times(2.0),  # it waits as long itself for whoever still reads
        **{f"weights.{method}": push for method in ("fetch", "commit", "address")},
        "weights.reserve": FIRST_ANSWER,
        **dict.fromkeys(("reward.start", "clips.start", "learner.open_store", "learner.first_answer"), FIRST_ANSWER),
        **dict.fromkeys(("rollout.close", "reward.close", "clips.close"), CLOSE),
        **dict.fromkeys(("rollout.ping", "reward.ping", "clips.ping", "learner.ping", "mailbox.exchange"), ping),
        **dict.fromkeys(("mailbox.status", "mailbox.wish"), ASKED),
    }


async def within(deadline: Deadline, what: str, call: Awaitable[Result]) -> Result:
    """The result of `call` (`what` in words); it is cancelled where it is not done in time, or nobody waits any more.

    Raises:
        DeadlineMissed
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task}, timeout=deadline.limit_s)
        if not task.done():
            await asyncio.wait({task}, timeout=UNREAD_S)
        if not task.done():
            setting = f" ({deadline.setting})" if deadline.setting else ""
            raise DeadlineMissed(f"{what} took longer than {deadline.limit_s:g} s{setting}")
        return task.result()
    finally:
        task.cancel()
