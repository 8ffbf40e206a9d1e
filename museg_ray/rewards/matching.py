"""Segment matching r_M = (r_G + r_L) / 2: covered time against covered time, and single segments against theirs."""

from collections.abc import Sequence
from typing import NamedTuple

from museg_ray.rewards.segments import f1_of_unions, iou_of_unions
from museg_ray.types import Segment


class Match(NamedTuple):
    """A predicted segment and the true one that it is measured by."""

    predicted: int
    """Index into the predicted segments, sorted by start."""
    true: int
    """Index into the true segments, sorted by start."""
    ngiou: float


def ngiou(a: Segment, b: Segment) -> float:
    """Normalised generalised IoU of two segments: (1 + GIoU) / 2, in [0, 1]; 1 only for equal ones.

    GIoU = |I| / |U| - (|C| - |U|) / |C| with C the enclosing interval. On a line either the segments meet, then U = C
    and GIoU = |I| / |C|, or there is a gap between them, then I is empty and GIoU = -gap / |C|. Both are
    (first end - last start) / |C|, which stays in range whatever the rounding.

    Source: GIoU of arXiv 1902.09630, normalised as in MUSEG (arXiv 2505.20715, section 4.2.1).
    """
    signed_overlap_s = min(a[1], b[1]) - max(a[0], b[0])
    enclosing_s = max(a[1], b[1]) - min(a[0], b[0])
    return (1.0 + signed_overlap_s / enclosing_s) / 2.0


def match_segments(predicted: Sequence[Segment], truth: Sequence[Segment], local: str) -> list[Match]:
    """Pairs of the n predicted and m true segments, min(n, m) of them.

    Args:
        predicted: [n] segments, sorted by start.
        truth: [m] segments, sorted by start.
        local: `sequential` pairs the i-th with the i-th (the paper), `maximum` takes the assignment with the greatest
            sum of NGIoU.

    Source: sequential matching of MUSEG (arXiv 2505.20715, section 4.2.1); both ways are compared in its Table 3.
    """
    if local == "maximum":
        return _maximum(predicted, truth)
    assert local == "sequential", local
    return [Match(i, i, ngiou(p, t)) for i, (p, t) in enumerate(zip(predicted, truth, strict=False))]


def _maximum(predicted: Sequence[Segment], truth: Sequence[Segment]) -> list[Match]:
    if not predicted:
        return []
    import numpy as np
    from scipy.optimize import linear_sum_assignment  # here: only this ablation pays for loading scipy

    p, t = np.array(predicted)[:, None], np.array(truth)[None]  # [n, 1, 2], [1, m, 2]
    signed_overlap_s = np.minimum(p[..., 1], t[..., 1]) - np.maximum(p[..., 0], t[..., 0])  # [n, m]
    enclosing_s = np.maximum(p[..., 1], t[..., 1]) - np.minimum(p[..., 0], t[..., 0])  # [n, m]
    rows, columns = linear_sum_assignment(signed_overlap_s / enclosing_s, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [Match(i, j, ngiou(predicted[i], truth[j])) for i, j in pairs]


def global_reward(predicted: list[Segment], truth: list[Segment], measure: str) -> float:
    """r_G in [0, 1]: how well all predicted time covers all true time.

    Args:
        predicted: disjoint, from `union`.
        truth: disjoint, from `union`.
        measure: `iou`: |∪P ∩ ∪G| / |∪P ∪ ∪G| (MUSEG, arXiv 2505.20715, section 4.2.1), or `f1`:
            2 |∪P ∩ ∪G| / (|∪P| + |∪G|) (its published code).
    """
    return {"iou": iou_of_unions, "f1": f1_of_unions}[measure](predicted, truth)


def local_reward(predicted: Sequence[Segment], truth: Sequence[Segment], local: str) -> float:
    """r_L = (1 / max(n, m)) Σ NGIoU over the pairs of `match_segments`, in [0, 1]; an unpaired segment gives 0.

    Source: MUSEG (arXiv 2505.20715, section 4.2.1).
    """
    if not predicted:
        return 0.0
    total = sum(match.ngiou for match in match_segments(predicted, truth, local))
    # Rounding of the sum may take the mean past 1 by a last digit.
    return min(1.0, total / max(len(predicted), len(truth)))
