"""The learning rate over a run."""


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Factor on the configured learning rate at `step` (from 0).

    Warm-up rises to 1 over the first `warmup_steps` steps, its first step already above 0: an update at rate 0 would
    spend a step's rollouts on nothing. Then `constant` stays at 1, and `linear` falls so that it would reach 0 at
    step `total_steps`, the first one after the run.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    assert schedule == "linear", schedule
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
