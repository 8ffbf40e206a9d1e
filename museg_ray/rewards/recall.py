"""The further reward `recall`: R1@t as steps."""

from museg_ray.rewards.answer import ParsedResponse
from museg_ray.rewards.segments import iou
from museg_ray.types import GroundingQuery

THRESHOLDS = (0.3, 0.5, 0.7)
"""The IoUs at which Charades-STA and its successors count a hit."""


def recall_reward(response: ParsedResponse, query: GroundingQuery) -> float:
    """(1 / 3) Σ_t [IoU(P, G) >= t] over t = 0.3, 0.5, 0.7, in [0, 1]; 0 for an invalid answer.

    For one predicted and one true segment this is the mean of R1@t, the metric that single-segment benchmarks report
    (TALL, arXiv 1705.02101, section 4.2); for several the IoU is that of the covered time.
    """
    overlap = iou(response.segments, query.segments)
    return sum(overlap >= threshold for threshold in THRESHOLDS) / len(THRESHOLDS)
