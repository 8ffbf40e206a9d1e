"""The rollout crew sizes itself from who waits for whom."""

from collections import deque
from collections.abc import Mapping

from museg_ray.config.schema import Config
from museg_ray.events import EventKind
from museg_ray.metrics import names
from museg_ray.rollout.pool import RolloutPool
from museg_ray.runs.events import Events

WINDOW_STEPS = 5
"""A decision looks at so many steps, all of them since the one before: a crew that has just changed is given time."""
MORE_ABOVE, FEWER_BELOW = 0.2, 0.02
"""Share of the steps' time that the learner waits for groups: above the one it wants more actors, below the other there
are more than it can use. The gap between them keeps the crew from swinging."""


class Autoscaler:
    """One actor more or fewer at a time, within `rollout.autoscale`."""

    def __init__(self, config: Config, rollouts: RolloutPool, events: Events) -> None:
        self._limits, self._rollouts, self._events = config.rollout.autoscale, rollouts, events
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=WINDOW_STEPS)  # waited, lasted, steps ready

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Decide, when the window is full and all that are wanted serve, but for those that wait for room.

        Args:
            metrics: of the step; empty where it made no update.
        """
        if not self._limits.max or not metrics:
            return
        lasted_s, ready = metrics[names.TIME_STEP_S], metrics[names.QUEUE_LEARNER]
        self._steps.append((metrics[names.TIME_WAIT_S], lasted_s, ready))
        status = self._rollouts.status()
        states = [member.state for member in status.members]
        num_waiting = states.count("waiting")
        if len(self._steps) < WINDOW_STEPS or states.count("serving") + num_waiting != status.num_wanted:
            return
        share = sum(waited for waited, _, _ in self._steps) / sum(lasted for _, lasted, _ in self._steps)
        always_ready = all(ready > 0 for _, _, ready in self._steps)
        if share > MORE_ABOVE and status.num_wanted < self._limits.max and not num_waiting:
            self._resize(status.num_wanted, 1, share)
        elif share < FEWER_BELOW and always_ready and status.num_wanted > self._limits.min:
            self._resize(status.num_wanted, -1, share)

    def _resize(self, size: int, by: int, share: float) -> None:
        what = "more" if by > 0 else "fewer"
        text = (
            f"the learner waited for {share:.0%} of the last {WINDOW_STEPS} steps: {what} rollout actors, {size + by}"
        )
        self._events.add(EventKind.SCALE, text, role="rollout", waited_share=round(share, 4), size=size + by)
        self._rollouts.resize(size + by)
        self._steps.clear()
