"""The names of every metric, with unit and meaning: one table for the recorder, the display and the report.

A name is `<part>/<quantity>`. Means are over the responses of a step unless said otherwise; times are seconds the
driver waited for a part, so parts that overlap may sum to more than the step.
"""

from typing import NamedTuple


class Metric(NamedTuple):
    """What a number of one name means."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {}
"""By name."""


def _metric(name: str, unit: str, meaning: str) -> str:
    METRICS[name] = Metric(unit, meaning)
    return name


REWARD_TOTAL = _metric("reward/total", "1", "weighted sum of the parts under the weights of the phase")
REWARD_MATCHING = _metric(
    "reward/matching", "1", "r_M, how well predicted and true segments match: (r_G + r_L) / 2, or r_G alone"
)
REWARD_GLOBAL = _metric("reward/global", "1", "r_G, overlap of all predicted with all true time: IoU or F1")
REWARD_LOCAL = _metric("reward/local", "1", "r_L, NGIoU of single segments and their counterparts")
REWARD_TIMESTAMP = _metric("reward/timestamp", "1", "r_T, the reasoning cites the timestamps of the answer")
REWARD_FORMAT = _metric("reward/format", "1", "r_F, one think block, one valid answer block, nothing else")
REWARD_TIOU = _metric("reward/tiou", "1", "IoU of the covered time, alone")
REWARD_RECALL = _metric("reward/recall", "1", "a third each for IoU of at least 0.3, 0.5 and 0.7")
REWARD_WASSERSTEIN = _metric("reward/wasserstein", "1", "nearness on the time axis, from the Wasserstein distance")
REWARD_BREVITY = _metric("reward/brevity", "1", "1 for a short response, 0 for one that is too long")
REWARD_CUSTOM = _metric("reward/custom", "1", "the reward that rewards.custom names")
REWARD_STD = _metric("reward/std", "1", "standard deviation of the total within a group, mean over groups")
REWARD_EQUAL_GROUPS_SHARE = _metric(
    "reward/equal_groups_share", "share", "groups whose responses all earned the same: they teach nothing"
)
REWARD_QUARANTINED = _metric("reward/quarantined", "responses", "responses of the step that could not be scored")
REWARD_REFILLS = _metric("reward/refills", "groups", "groups of equal rewards whose place another query took")
ANSWER_INVALID_SHARE = _metric("answer/invalid_share", "share", "responses without a valid answer")
ANSWER_SINGLE_SEGMENT_SHARE = _metric(
    "answer/single_segment_share", "share", "valid answers to multi-segment queries that name one segment"
)
ANSWER_SAME_SHARE = _metric(
    "answer/same_share", "share", "valid answers that are one and the same, given for different videos"
)
ANSWER_FULL_LENGTH_SHARE = _metric(
    "answer/full_length_share", "share", "valid answers that cover at least 90 % of the video, where the truth does not"
)
ROLLOUT_RESPONSES_PER_S = _metric("rollout/responses_per_s", "1/s", "responses generated a second of rollout")
ROLLOUT_COMPLETION_TOKENS = _metric("rollout/completion_tokens", "tokens", "length of a completion")
ROLLOUT_TRUNCATED_SHARE = _metric("rollout/truncated_share", "share", "completions cut by the length limit")
ROLLOUT_AGE_MEAN = _metric(
    "rollout/age_mean", "updates", "age of a token: from the weights that sampled it to those that learn"
)
ROLLOUT_AGE_MAX = _metric("rollout/age_max", "updates", "age of the oldest token")
VIDEO_PREPARED = _metric("video/prepared", "clips", "clips decoded during the step; the others were in the frame store")
VIDEO_UNREADABLE = _metric("video/unreadable", "queries", "queries of the step whose video cannot be read")
PARITY_GAP_MEAN = _metric("parity/gap_mean", "nats", "mean |rollout - learner log-prob| of the same tokens")
PARITY_GAP_MAX = _metric("parity/gap_max", "nats", "largest |rollout - learner log-prob| of the same tokens")
LEARNER_LOSS = _metric("learner/loss", "1", "GRPO loss")
LEARNER_KL = _metric("learner/kl", "nats", "KL of the policy to the reference, k3 estimate")
LEARNER_GRAD_NORM = _metric("learner/grad_norm", "1", "gradient norm before clipping")
LEARNER_LEARNING_RATE = _metric("learner/learning_rate", "1", "learning rate of the update")
LEARNER_CLIPPED_SHARE = _metric(
    "learner/clipped_share", "share", "tokens whose policy gradient the clip cut, weighed as in the loss"
)
LEARNER_ENTROPY = _metric("learner/entropy", "nats", "entropy of the policy at a token, weighed as in the loss")
LEARNER_CORRECTION = _metric("learner/correction", "1", "importance weight of a token after truncating or masking")
LEARNER_CORRECTED_SHARE = _metric(
    "learner/corrected_share", "share", "tokens whose importance weight was truncated or masked"
)
LEARNER_UPDATES = _metric("learner/updates", "updates", "optimiser updates of the step")
LEARNER_SKIPPED = _metric(
    "learner/skipped", "updates", "updates of the step left out because loss or gradient was not finite"
)
LEARNER_SEQUENCES = _metric("learner/sequences", "sequences", "packed sequences of the step, all ranks")
LEARNER_TOKENS = _metric(
    "learner/tokens", "tokens", "tokens that went through the language model in an update pass, all ranks"
)
TIME_WAIT_S = _metric("time/wait_s", "s", "the learner waited for the step's groups")
TIME_CLIPS_S = _metric("time/clips_s", "s", "waiting for prepared clips")
TIME_ROLLOUT_S = _metric("time/rollout_s", "s", "generating responses")
TIME_REWARD_S = _metric("time/reward_s", "s", "scoring responses")
TIME_LEARNER_S = _metric("time/learner_s", "s", "learner update")
TIME_SYNC_S = _metric("time/sync_s", "s", "pushing weights to the rollout actors")
TIME_STEP_S = _metric("time/step_s", "s", "the whole step")
PUSH_PHASES_S = {
    "prepare": _metric("time/push_prepare_s", "s", "until each machine's next weights file was free"),
    "write": _metric("time/push_write_s", "s", "learner ranks writing the weights"),
    "transfer": _metric("time/push_transfer_s", "s", "weights going to other machines"),
    "pause": _metric("time/push_pause_s", "s", "until an engine's requests stood still; the slowest engine"),
    "copy": _metric("time/push_copy_s", "s", "an engine loading the weights out of the file; the slowest engine"),
    "resume": _metric("time/push_resume_s", "s", "until an engine's requests went on; the slowest engine"),
    "probe": _metric("time/push_probe_s", "s", "engines and learner scoring one short sequence after the push"),
}
PUSH_GAP = _metric(
    "push/gap", "nats", "mean |engine - learner log-prob| of that sequence; the worst engine that serves"
)
WEIGHTS_VERSION = _metric("weights/version", "version", "weights that the rollout actors hold after the step")
QUEUE_ROLLOUT = _metric("queue/rollout", "groups", "groups waiting for a rollout actor")
QUEUE_REWARD = _metric("queue/reward", "groups", "groups waiting for a reward actor")
QUEUE_LEARNER = _metric("queue/learner", "steps", "steps whose groups are complete and wait for the learner")
ALARM_SINGLE_SEGMENT = _metric("alarm/single_segment", "0 or 1", "multi-segment queries are answered with one segment")
ALARM_TIMESTAMP_STUCK = _metric("alarm/timestamp_stuck", "0 or 1", "r_T stays near 0 though the phase weighs it")
ALARM_MATCHING_FALLS = _metric("alarm/matching_falls", "0 or 1", "r_M is lower than at the end of the phase before")
ALARM_VARIANCE_COLLAPSE = _metric("alarm/variance_collapse", "0 or 1", "the responses of a group earn nearly the same")
ALARM_TRUNCATED = _metric("alarm/truncated", "0 or 1", "many responses are cut by the length limit")
ALARM_FORMAT_FALLS = _metric("alarm/format_falls", "0 or 1", "r_F is lower than it has been")
ALARM_VIDEO_BLIND = _metric("alarm/video_blind", "0 or 1", "answers do not depend on the video")
ALARM_GAP_GROWS = _metric("alarm/gap_grows", "0 or 1", "rollout and learner log-probs differ more than they did")
ALARM_SKIPPED_UPDATES = _metric(
    "alarm/skipped_updates", "0 or 1", "updates were left out: loss or gradient was not finite"
)

ALARMS = tuple(name for name in METRICS if name.startswith("alarm/"))
"""1 while raised, 0 otherwise; `config.alarms` has the limits."""

TIME_PARTS = {
    "clips": TIME_CLIPS_S,
    "rollout": TIME_ROLLOUT_S,
    "reward": TIME_REWARD_S,
    "learner": TIME_LEARNER_S,
    "sync": TIME_SYNC_S,
}
"""What a step's time is shown as."""

SCORES = (
    ("miou", "mIoU", "overlap of predicted and true time, all queries"),
    ("r1_at_05", "R1 at IoU 0.5", "of the first segment, queries with one segment"),
    ("multi_f1_at_05", "multi-segment F1 at 0.5", "segments found at IoU 0.5, queries with several"),
    ("count_accuracy", "right number of segments", "share of all queries"),
    ("format_rate", "right format", "one think block, one valid answer block, nothing else"),
)
"""Of the evaluation: key, name, meaning."""
