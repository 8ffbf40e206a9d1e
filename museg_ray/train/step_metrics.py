"""What a step says about the parts: how long its groups took, how old their tokens are, how long the queues were."""

from collections import Counter
from dataclasses import dataclass

from museg_ray.metrics import names
from museg_ray.metrics.groups import group_metrics
from museg_ray.train.work import StepWork
from museg_ray.types import Group, VersionSpan


@dataclass(slots=True)
class QueuePeaks:
    """Most groups at once in each queue since they were last taken."""

    rollout: int = 0
    reward: int = 0
    learner: int = 0

    def see(self, rollout: int, reward: int, learner: int) -> None:
        self.rollout = max(self.rollout, rollout)
        self.reward = max(self.reward, reward)
        self.learner = max(self.learner, learner)

    def take(self) -> dict[str, float]:
        """The `queue/*` metrics; counting starts anew."""
        peaks = {names.QUEUE_ROLLOUT: self.rollout, names.QUEUE_REWARD: self.reward, names.QUEUE_LEARNER: self.learner}
        self.rollout = self.reward = self.learner = 0
        return {name: float(peak) for name, peak in peaks.items()}


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


def _ages(groups: list[Group], version: int) -> dict[str, float]:
    """Updates between the weights that sampled a token and those that learn from it."""
    num_tokens = Counter[int]()  # by age
    for group in groups:
        for response in group.responses:
            for span in response.spans or (VersionSpan(group.weight_version, len(response.token_ids)),):
                num_tokens[version - span.version] += span.num_tokens
    mean = sum(age * num for age, num in num_tokens.items()) / num_tokens.total()
    return {names.ROLLOUT_AGE_MEAN: float(mean), names.ROLLOUT_AGE_MAX: float(max(num_tokens))}
