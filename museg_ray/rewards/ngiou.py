"""How well one segment fits another, also where they do not meet."""

from museg_ray.types import Segment


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
