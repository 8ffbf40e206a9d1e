"""The names of every metric, with unit and meaning: one table for the recorder, the display and the report.

A name is `<part>/<quantity>`. Means are over the responses of a step unless said otherwise; times are seconds the
driver waited for a part, so parts that overlap may sum to more than the step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

REWARD_TOTAL = "reward/total"
REWARD_MATCHING = "reward/matching"
REWARD_GLOBAL = "reward/global"
REWARD_LOCAL = "reward/local"
REWARD_TIMESTAMP = "reward/timestamp"
REWARD_FORMAT = "reward/format"
REWARD_STD = "reward/std"
ROLLOUT_RESPONSES_PER_S = "rollout/responses_per_s"
ROLLOUT_COMPLETION_TOKENS = "rollout/completion_tokens"
ROLLOUT_TRUNCATED_SHARE = "rollout/truncated_share"
PARITY_GAP_MEAN = "parity/gap_mean"
PARITY_GAP_MAX = "parity/gap_max"
LEARNER_LOSS = "learner/loss"
LEARNER_KL = "learner/kl"
LEARNER_GRAD_NORM = "learner/grad_norm"
LEARNER_LEARNING_RATE = "learner/learning_rate"
TIME_CLIPS_S = "time/clips_s"
TIME_ROLLOUT_S = "time/rollout_s"
TIME_REWARD_S = "time/reward_s"
TIME_LEARNER_S = "time/learner_s"
TIME_SYNC_S = "time/sync_s"
TIME_STEP_S = "time/step_s"
WEIGHTS_VERSION = "weights/version"
QUEUE_ROLLOUT = "queue/rollout"
QUEUE_REWARD = "queue/reward"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number of one name means."""

    unit: str
    meaning: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        REWARD_TOTAL: Metric("1", "weighted sum of the parts under the weights of the phase"),
        REWARD_MATCHING: Metric("1", "r_M, how well predicted and true segments match: (r_G + r_L) / 2"),
        REWARD_GLOBAL: Metric("1", "r_G, intersection over union of all predicted and all true time"),
        REWARD_LOCAL: Metric("1", "r_L, NGIoU of segments paired in order of time"),
        REWARD_TIMESTAMP: Metric("1", "r_T, the reasoning cites every timestamp of the answer"),
        REWARD_FORMAT: Metric("1", "r_F, one think block, one valid answer block, nothing else"),
        REWARD_STD: Metric("1", "standard deviation of the total within a group, mean over groups"),
        ROLLOUT_RESPONSES_PER_S: Metric("1/s", "responses generated a second of rollout"),
        ROLLOUT_COMPLETION_TOKENS: Metric("tokens", "length of a completion"),
        ROLLOUT_TRUNCATED_SHARE: Metric("share", "completions cut by the length limit"),
        PARITY_GAP_MEAN: Metric("nats", "mean |rollout - learner log-prob| of the same tokens"),
        PARITY_GAP_MAX: Metric("nats", "largest |rollout - learner log-prob| of the same tokens"),
        LEARNER_LOSS: Metric("1", "GRPO loss"),
        LEARNER_KL: Metric("nats", "KL of the policy to the reference, k3 estimate"),
        LEARNER_GRAD_NORM: Metric("1", "gradient norm before clipping"),
        LEARNER_LEARNING_RATE: Metric("1", "learning rate of the update"),
        TIME_CLIPS_S: Metric("s", "preparing clips"),
        TIME_ROLLOUT_S: Metric("s", "generating responses"),
        TIME_REWARD_S: Metric("s", "scoring responses"),
        TIME_LEARNER_S: Metric("s", "learner update"),
        TIME_SYNC_S: Metric("s", "pushing weights to the rollout actors"),
        TIME_STEP_S: Metric("s", "the whole step"),
        WEIGHTS_VERSION: Metric("version", "weights that the rollout actors hold after the step"),
        QUEUE_ROLLOUT: Metric("groups", "groups waiting for a rollout actor"),
        QUEUE_REWARD: Metric("groups", "groups waiting for a reward actor"),
    }
)
