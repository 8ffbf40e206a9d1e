"""The learning rate over a run: a function of the global step alone, so a resumed run needs no state for it."""

from collections.abc import Sequence

from museg_ray.config.schema import PhaseConfig

Span = tuple[int, int]
"""(first global step, number of steps) of consecutive phases under one schedule."""


def schedule_spans(phases: Sequence[PhaseConfig]) -> list[Span]:
    """The run cut where a phase starts the schedule anew; at least one span, the first from step 0.

    A phase without steps never begins: it cuts nothing, and those after it go on with the schedule before it.
    """
    spans = [(0, 0)]
    for phase in (phase for phase in phases if phase.steps > 0):
        first_step, num_steps = spans[-1]
        if phase.fresh_schedule and num_steps > 0:
            spans.append((first_step + num_steps, phase.steps))
        else:
            spans[-1] = (first_step, num_steps + phase.steps)
    return spans


def learning_rate_factor(step: int, spans: Sequence[Span], warmup_steps: int, schedule: str) -> float:
    """Factor on the configured learning rate at the global `step` (from 0): warm-up and decay of the step's span. Steps
    after the run belong to the last span.

    Warm-up rises to 1 over the first `warmup_steps` steps, its first step already above 0: an update at rate 0 would
    spend a step's rollouts on nothing. Then `constant` stays at 1, and `linear` falls so that it would reach 0 at the
    first step after the span.
    """
    first_step, total_steps = next(span for span in reversed(spans) if span[0] <= step)
    step -= first_step
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    assert schedule == "linear", schedule
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
