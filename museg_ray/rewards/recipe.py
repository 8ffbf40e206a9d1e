"""The recipe `paper`: all rewards of one response (MUSEG, arXiv 2505.20715, section 4.2)."""

import math
from collections.abc import Sequence

from museg_ray.config.schema import RewardWeights
from museg_ray.rewards.answer import parse_response
from museg_ray.rewards.citation import timestamp_reward
from museg_ray.rewards.matching import local_reward
from museg_ray.rewards.segments import iou
from museg_ray.types import RewardParts, Segment


def score_response(text: str, truth: Sequence[Segment], weights: RewardWeights, local: str) -> RewardParts:
    """Rewards of one response, for any text whatever.

    r_G = IoU of unions; r_L = mean NGIoU of matched segments; r_M = (r_G + r_L) / 2; r_T = all times of the answer
    cited in the reasoning; r_F = one think block, then one valid answer block, and nothing else. Each is finite and in
    [0, 1], and 0 for an invalid answer. total = w_M r_M + w_T r_T + w_F r_F.

    Args:
        text: the completion, special tokens visible.
        truth: [m] true segments, m >= 1, each with 0 <= start < end.
        weights: w_M, w_T and w_F of the phase.
        local: `sequential`, `maximum`, or `none`: then r_M is r_G, and r_L is 0.
    """
    assert truth and all(0.0 <= start_s < end_s < math.inf for start_s, end_s in truth), f"ill-formed truth: {truth}"
    response = parse_response(text)
    global_iou = iou(response.segments, truth)
    if local == "none":
        local_ngiou, matching = 0.0, global_iou
    else:
        local_ngiou = local_reward(response.segments, sorted(truth), local)
        matching = (global_iou + local_ngiou) / 2.0
    timestamp = timestamp_reward(response.segments, response.reasoning)
    well_formed = float(response.well_formed)
    return RewardParts(
        total=weights.matching * matching + weights.timestamp * timestamp + weights.format * well_formed,
        global_iou=global_iou,
        local_ngiou=local_ngiou,
        matching=matching,
        timestamp=timestamp,
        format=well_formed,
        predicted=response.segments,
    )
