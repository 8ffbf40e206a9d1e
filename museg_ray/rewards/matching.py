"""Local matching: how well single segments fit their counterparts, r_L of MUSEG (arXiv 2505.20715, section 4.2.1)."""

from collections.abc import Sequence

from museg_ray.types import Segment


def ngiou(a: Segment, b: Segment) -> float:
    """Normalised generalised IoU of two segments: (1 + GIoU) / 2, in [0, 1]; 1 only for equal ones.

    GIoU = |I| / |U| - (|C| - |U|) / |C| with C the enclosing interval. On a line either the segments meet, then U = C
    and GIoU = |I| / |C|, or there is a gap between them, then I is empty and GIoU = -gap / |C|. Both are
    (first end - last start) / |C|, which stays in range whatever the rounding.

    Source: GIoU of arXiv 1902.09630, normalised as in MUSEG.
    """
    signed_overlap_s = min(a[1], b[1]) - max(a[0], b[0])
    enclosing_s = max(a[1], b[1]) - min(a[0], b[0])
    return (1.0 + signed_overlap_s / enclosing_s) / 2.0


def _sequential(predicted: Sequence[Segment], truth: Sequence[Segment]) -> float:
    return sum(ngiou(p, t) for p, t in zip(predicted, truth, strict=False))


def _maximum(predicted: Sequence[Segment], truth: Sequence[Segment]) -> float:
    import numpy as np
    from scipy.optimize import linear_sum_assignment  # here: only this ablation pays for loading scipy

    scores = np.array([[ngiou(p, t) for t in truth] for p in predicted])  # [n, m]
    return float(scores[linear_sum_assignment(scores, maximize=True)].sum())


def local_reward(predicted: Sequence[Segment], truth: Sequence[Segment], local: str) -> float:
    """r_L = (1 / max(n, m)) Σ NGIoU over pairs of the n predicted and m true segments, in [0, 1]; unpaired ones give 0.

    Args:
        predicted: [n] segments, sorted by start.
        truth: [m] segments, sorted by start, m >= 1.
        local: `sequential` pairs the i-th with the i-th (the paper), `maximum` takes the best assignment.
    """
    if not predicted:
        return 0.0
    pair = {"sequential": _sequential, "maximum": _maximum}[local]
    # Rounding of the sum may take the mean past 1 by a last digit.
    return min(1.0, pair(predicted, truth) / max(len(predicted), len(truth)))
