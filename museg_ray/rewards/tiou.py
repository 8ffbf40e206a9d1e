"""The further reward `tiou`: plain temporal IoU."""

from museg_ray.rewards.answer import ParsedResponse
from museg_ray.rewards.segments import iou
from museg_ray.types import GroundingQuery


def tiou_reward(response: ParsedResponse, query: GroundingQuery) -> float:
    """|∪P ∩ ∪G| / |∪P ∪ ∪G| of covered seconds, in [0, 1]; 0 for an invalid answer.

    By itself it is the only reward of TimeLens (arXiv 2512.14698); beside `matching` it weighs r_G more.
    """
    return iou(response.segments, query.segments)
