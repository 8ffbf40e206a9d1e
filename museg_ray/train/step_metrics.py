"""What a step says about the parts: how long its groups took, how old their tokens are, how long the queues were."""

from collections import Counter
from collections.abc import Mapping, Sequence

from museg_ray.metrics import names
from museg_ray.metrics.groups import group_metrics
from museg_ray.train.work import StepWork
from museg_ray.types import Group, VersionSpan
from museg_ray.weights.channel import Confirmed

QUEUES = {"rollout": names.QUEUE_ROLLOUT, "reward": names.QUEUE_REWARD, "learner": names.QUEUE_LEARNER}
ENGINE_PHASES = ("pause", "copy", "resume")


class QueuePeaks:
    """Most groups at once in each queue since they were last taken."""

    def __init__(self) -> None:
        self._peaks = dict.fromkeys(QUEUES.values(), 0.0)

    def see(self, sizes: Mapping[str, int]) -> None:
        """`sizes`: of `queue_sizes`."""
        for queue, size in sizes.items():
            self._peaks[QUEUES[queue]] = max(self._peaks[QUEUES[queue]], float(size))

    def take(self) -> dict[str, float]:
        """The `queue/*` metrics; counting starts anew."""
        peaks, self._peaks = self._peaks, dict.fromkeys(QUEUES.values(), 0.0)
        return peaks


def step_metrics(work: StepWork, version: int, queues: dict[str, float]) -> dict[str, float]:
    """
    Args:
        work: complete, with a group that can be compared.
        version: of the learner's weights before the update.
        queues: of `QueuePeaks.take`.
    """
    groups = [made.group for made in work.in_order]
    return {
        **group_metrics(groups, work.ended_s - work.begun_s, work.dropped),
        **_ages(groups, version),
        **queues,
        names.REWARD_QUARANTINED: float(sum(len(group.unscored) for group in groups)),
        names.REWARD_REFILLS: float(work.num_refills),
        names.TIME_CLIPS_S: max(group.clip_s for group in groups),
        names.TIME_ROLLOUT_S: max(group.rollout_s for group in groups),
        names.TIME_REWARD_S: max(group.reward_s for group in groups),
    }


def push_metrics(
    phases_s: Mapping[str, float], confirmed: Sequence[Confirmed], probe_s: float, gap: float
) -> dict[str, float]:
    """
    Args:
        phases_s: of the channel.
        confirmed: by the engines.
        probe_s: time of the probe.
        gap: that it found.
    """
    of_engines = {phase: max((getattr(c, f"{phase}_s") for c in confirmed), default=0.0) for phase in ENGINE_PHASES}
    phases = {**phases_s, **of_engines, "probe": probe_s}
    return {names.PUSH_PHASES_S[phase]: seconds for phase, seconds in phases.items()} | {names.PUSH_GAP: gap}


def _ages(groups: list[Group], version: int) -> dict[str, float]:
    """Updates between the weights that sampled a token and those that learn from it."""
    num_tokens = Counter[int]()  # by age
    for group in groups:
        for response in group.responses:
            for span in response.spans or (VersionSpan(group.weight_version, len(response.token_ids)),):
                num_tokens[version - span.version] += span.num_tokens
    mean = sum(age * num for age, num in num_tokens.items()) / num_tokens.total()
    return {names.ROLLOUT_AGE_MEAN: float(mean), names.ROLLOUT_AGE_MAX: float(max(num_tokens))}
