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
REWARD_TIOU = "reward/tiou"
REWARD_RECALL = "reward/recall"
REWARD_WASSERSTEIN = "reward/wasserstein"
REWARD_BREVITY = "reward/brevity"
REWARD_CUSTOM = "reward/custom"
REWARD_STD = "reward/std"
REWARD_EQUAL_GROUPS_SHARE = "reward/equal_groups_share"
REWARD_QUARANTINED = "reward/quarantined"
REWARD_REFILLS = "reward/refills"
ANSWER_INVALID_SHARE = "answer/invalid_share"
ANSWER_SINGLE_SEGMENT_SHARE = "answer/single_segment_share"
ANSWER_SAME_SHARE = "answer/same_share"
ANSWER_FULL_LENGTH_SHARE = "answer/full_length_share"
ROLLOUT_RESPONSES_PER_S = "rollout/responses_per_s"
ROLLOUT_COMPLETION_TOKENS = "rollout/completion_tokens"
ROLLOUT_TRUNCATED_SHARE = "rollout/truncated_share"
ROLLOUT_AGE_MEAN = "rollout/age_mean"
ROLLOUT_AGE_MAX = "rollout/age_max"
VIDEO_PREPARED = "video/prepared"
VIDEO_UNREADABLE = "video/unreadable"
PARITY_GAP_MEAN = "parity/gap_mean"
PARITY_GAP_MAX = "parity/gap_max"
LEARNER_LOSS = "learner/loss"
LEARNER_KL = "learner/kl"
LEARNER_GRAD_NORM = "learner/grad_norm"
LEARNER_LEARNING_RATE = "learner/learning_rate"
LEARNER_CLIPPED_SHARE = "learner/clipped_share"
LEARNER_ENTROPY = "learner/entropy"
LEARNER_CORRECTION = "learner/correction"
LEARNER_CORRECTED_SHARE = "learner/corrected_share"
LEARNER_UPDATES = "learner/updates"
LEARNER_SKIPPED = "learner/skipped"
LEARNER_SEQUENCES = "learner/sequences"
LEARNER_TOKENS = "learner/tokens"
TIME_WAIT_S = "time/wait_s"
TIME_CLIPS_S = "time/clips_s"
TIME_ROLLOUT_S = "time/rollout_s"
TIME_REWARD_S = "time/reward_s"
TIME_LEARNER_S = "time/learner_s"
TIME_SYNC_S = "time/sync_s"
TIME_STEP_S = "time/step_s"
WEIGHTS_VERSION = "weights/version"
QUEUE_ROLLOUT = "queue/rollout"
QUEUE_REWARD = "queue/reward"
QUEUE_LEARNER = "queue/learner"
ALARM_SINGLE_SEGMENT = "alarm/single_segment"
ALARM_TIMESTAMP_STUCK = "alarm/timestamp_stuck"
ALARM_MATCHING_FALLS = "alarm/matching_falls"
ALARM_VARIANCE_COLLAPSE = "alarm/variance_collapse"
ALARM_TRUNCATED = "alarm/truncated"
ALARM_FORMAT_FALLS = "alarm/format_falls"
ALARM_VIDEO_BLIND = "alarm/video_blind"
ALARM_SKIPPED_UPDATES = "alarm/skipped_updates"
ALARMS = (
    ALARM_SINGLE_SEGMENT,
    ALARM_TIMESTAMP_STUCK,
    ALARM_MATCHING_FALLS,
    ALARM_VARIANCE_COLLAPSE,
    ALARM_TRUNCATED,
    ALARM_FORMAT_FALLS,
    ALARM_VIDEO_BLIND,
    ALARM_SKIPPED_UPDATES,
)
"""1 while raised, 0 otherwise; `config.alarms` has the limits."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number of one name means."""

    unit: str
    meaning: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        REWARD_TOTAL: Metric("1", "weighted sum of the parts under the weights of the phase"),
        REWARD_MATCHING: Metric("1", "r_M, how well predicted and true segments match: (r_G + r_L) / 2, or r_G alone"),
        REWARD_GLOBAL: Metric("1", "r_G, overlap of all predicted with all true time: IoU or F1"),
        REWARD_LOCAL: Metric("1", "r_L, NGIoU of single segments and their counterparts"),
        REWARD_TIMESTAMP: Metric("1", "r_T, the reasoning cites the timestamps of the answer"),
        REWARD_FORMAT: Metric("1", "r_F, one think block, one valid answer block, nothing else"),
        REWARD_TIOU: Metric("1", "IoU of the covered time, alone"),
        REWARD_RECALL: Metric("1", "a third each for IoU of at least 0.3, 0.5 and 0.7"),
        REWARD_WASSERSTEIN: Metric("1", "nearness on the time axis, from the Wasserstein distance"),
        REWARD_BREVITY: Metric("1", "1 for a short response, 0 for one that is too long"),
        REWARD_CUSTOM: Metric("1", "the reward that rewards.custom names"),
        REWARD_STD: Metric("1", "standard deviation of the total within a group, mean over groups"),
        REWARD_EQUAL_GROUPS_SHARE: Metric("share", "groups whose responses all earned the same: they teach nothing"),
        REWARD_QUARANTINED: Metric("responses", "responses of the step that could not be scored"),
        REWARD_REFILLS: Metric("groups", "groups of equal rewards whose place another query took"),
        ANSWER_INVALID_SHARE: Metric("share", "responses without a valid answer"),
        ANSWER_SINGLE_SEGMENT_SHARE: Metric("share", "valid answers to multi-segment queries that name one segment"),
        ANSWER_SAME_SHARE: Metric("share", "valid answers that are one and the same, given for different videos"),
        ANSWER_FULL_LENGTH_SHARE: Metric(
            "share", "valid answers that cover at least 90 % of the video, where the truth does not"
        ),
        ROLLOUT_RESPONSES_PER_S: Metric("1/s", "responses generated a second of rollout"),
        ROLLOUT_COMPLETION_TOKENS: Metric("tokens", "length of a completion"),
        ROLLOUT_TRUNCATED_SHARE: Metric("share", "completions cut by the length limit"),
        ROLLOUT_AGE_MEAN: Metric("updates", "age of a token: from the weights that sampled it to those that learn"),
        ROLLOUT_AGE_MAX: Metric("updates", "age of the oldest token"),
        VIDEO_PREPARED: Metric("clips", "clips decoded during the step; the others were in the frame store"),
        VIDEO_UNREADABLE: Metric("queries", "queries of the step whose video cannot be read"),
        PARITY_GAP_MEAN: Metric("nats", "mean |rollout - learner log-prob| of the same tokens"),
        PARITY_GAP_MAX: Metric("nats", "largest |rollout - learner log-prob| of the same tokens"),
        LEARNER_LOSS: Metric("1", "GRPO loss"),
        LEARNER_KL: Metric("nats", "KL of the policy to the reference, k3 estimate"),
        LEARNER_GRAD_NORM: Metric("1", "gradient norm before clipping"),
        LEARNER_LEARNING_RATE: Metric("1", "learning rate of the update"),
        LEARNER_CLIPPED_SHARE: Metric("share", "tokens whose policy gradient the clip cut, weighed as in the loss"),
        LEARNER_ENTROPY: Metric("nats", "entropy of the policy at a token, weighed as in the loss"),
        LEARNER_CORRECTION: Metric("1", "importance weight of a token after truncating or masking"),
        LEARNER_CORRECTED_SHARE: Metric("share", "tokens whose importance weight was truncated or masked"),
        LEARNER_UPDATES: Metric("updates", "optimiser updates of the step"),
        LEARNER_SKIPPED: Metric("updates", "updates of the step left out because loss or gradient was not finite"),
        LEARNER_SEQUENCES: Metric("sequences", "packed sequences of the step, all ranks"),
        LEARNER_TOKENS: Metric("tokens", "tokens that went through the language model in an update pass, all ranks"),
        TIME_WAIT_S: Metric("s", "the learner waited for the step's groups"),
        TIME_CLIPS_S: Metric("s", "waiting for prepared clips"),
        TIME_ROLLOUT_S: Metric("s", "generating responses"),
        TIME_REWARD_S: Metric("s", "scoring responses"),
        TIME_LEARNER_S: Metric("s", "learner update"),
        TIME_SYNC_S: Metric("s", "pushing weights to the rollout actors"),
        TIME_STEP_S: Metric("s", "the whole step"),
        WEIGHTS_VERSION: Metric("version", "weights that the rollout actors hold after the step"),
        QUEUE_ROLLOUT: Metric("groups", "groups waiting for a rollout actor"),
        QUEUE_REWARD: Metric("groups", "groups waiting for a reward actor"),
        QUEUE_LEARNER: Metric("steps", "steps whose groups are complete and wait for the learner"),
        ALARM_SINGLE_SEGMENT: Metric("0 or 1", "multi-segment queries are answered with one segment"),
        ALARM_TIMESTAMP_STUCK: Metric("0 or 1", "r_T stays near 0 though the phase weighs it"),
        ALARM_MATCHING_FALLS: Metric("0 or 1", "r_M is lower than at the end of the phase before"),
        ALARM_VARIANCE_COLLAPSE: Metric("0 or 1", "the responses of a group earn nearly the same"),
        ALARM_TRUNCATED: Metric("0 or 1", "many responses are cut by the length limit"),
        ALARM_FORMAT_FALLS: Metric("0 or 1", "r_F is lower than it has been"),
        ALARM_VIDEO_BLIND: Metric("0 or 1", "answers do not depend on the video"),
        ALARM_SKIPPED_UPDATES: Metric("0 or 1", "updates were left out: loss or gradient was not finite"),
    }
)
