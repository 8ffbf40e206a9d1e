"""What must hold of a step, and the errors that say what does not."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from museg_ray.errors import ParityError, QueryError, RewardError, VideoError
from museg_ray.metrics import names
from museg_ray.train.work import StepWork
from museg_ray.types import Group

MAX_EMPTY_STEPS = 3


def comparable_groups(work: StepWork, quarantine_path: Path) -> list[Group]:
    """What the learner gets, in the order of issue.

    Raises:
        RewardError: no group of the step has two responses with a score.
    """
    groups = [made.group for made in work.in_order]
    comparable = [group.for_update() for group in groups if group.is_comparable]
    if not comparable:
        raise RewardError(
            f"No group of the step could be scored: {unscored_reason(groups[-1])}. Their texts and all reasons are in "
            f"{quarantine_path}."
        )
    return comparable


def unscored_reason(group: Group) -> str:
    """Why a group that cannot be compared is in no update."""
    return f"{len(group.unscored)} of its responses could not be scored, the last one: {group.unscored[-1].reasons[-1]}"


def check_age(groups: Sequence[Group], version: int, max_staleness: int) -> None:
    """No token that is trained is older than `max_staleness` updates: the bound that the importance weights rely on."""
    for group in groups:
        age = version - group.oldest_version
        assert age <= max_staleness, f"issue {group.issue.issue_id} is {age} updates old; {max_staleness} are allowed"
        assert age >= 0, f"issue {group.issue.issue_id} has tokens of weights newer than the learner's {version}"


def check_gap(learned: Mapping[str, float], version: int, max_gap: float) -> None:
    """
    Raises:
        ParityError: the mean log-prob gap of responses that were sampled from the learner's own weights exceeds
            `train.max_logprob_gap`: stale weights or positions, and training would be off-policy without a sign.
    """
    gap = learned.get(names.PARITY_GAP_MEAN, 0.0)  # absent where all responses are of older weights
    if not gap <= max_gap:  # also for a gap that is no number
        raise ParityError(
            f"Rollout and learner log-probs of the same tokens differ by {gap:.2e} nats on average (largest "
            f"{learned[names.PARITY_GAP_MAX]:.2e}), more than train.max_logprob_gap = {max_gap:.0e}, at weight version "
            f"{version}. A push that left weights behind or wrong video positions look like this; for bfloat16 engines "
            "a limit of about 0.08 is usual."
        )


def check_empty_steps(num_empty: int, step: int, failures: Sequence[QueryError]) -> None:
    """
    Raises:
        VideoError, UnfitQueryError, RewardError: too many steps in a row had no group: the storage is gone, no query
            fits, or nothing is left to learn.
    """
    if num_empty < MAX_EMPTY_STEPS:
        return
    where = f"of the last {MAX_EMPTY_STEPS} steps up to step {step}"
    if failures:
        what, done = ("video", "read") if isinstance(failures[-1], VideoError) else ("query", "sampled")
        raise type(failures[-1])(f"No {what} {where} can be {done}. {failures[-1]}")
    raise RewardError(
        f"In all groups {where} the responses earned the same, after train.max_refills other queries a step: there is "
        "nothing to learn from. Look at the responses in rollouts.parquet; raise train.max_refills, or set "
        "train.refill=none."
    )
