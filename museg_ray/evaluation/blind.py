"""The best answer that needs no eyes: what a model must beat to show that it looks at the video."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from museg_ray.evaluation.metrics import GroundingAnswer, GroundingScores, grounding_scores
from museg_ray.rewards.segments import union
from museg_ray.types import GroundingQuery, Segment

GRID_STEPS = 200
"""Candidate starts and ends: this many equal steps from 0 to the longest time (or share 1)."""


@dataclass(frozen=True, slots=True)
class BlindAnswer:
    """One interval given as the answer to every query."""

    unit: str
    """`seconds` from the start of the video, or `share` of its duration."""
    start: float
    end: float
    train_miou: float
    """What it scores on the queries it was chosen on."""

    def segment(self, query: GroundingQuery) -> Segment:
        """The interval in seconds for one query's video."""
        if self.unit == "seconds":
            return self.start, self.end
        assert query.duration_s is not None
        return self.start * query.duration_s, self.end * query.duration_s


def _covered_until(segments: Sequence[Segment], times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Length of the covered part of [0, t], for each t of `times` [K]."""
    starts, ends = np.array(union(segments)).T  # [M] each, disjoint
    return np.asarray(np.clip(times[:, None] - starts, 0.0, ends - starts).sum(axis=1))  # [K]


def _best_interval(truths: Sequence[Sequence[Segment]], unit: str) -> BlindAnswer:
    """The interval on the grid with the highest mean IoU over N queries."""
    longest = max(end for truth in truths for _, end in truth)
    times = np.linspace(0.0, longest, GRID_STEPS + 1)  # [K]
    covered = np.array([_covered_until(truth, times) for truth in truths]).T  # [K, N]
    total = covered[-1]  # [N]
    best = BlindAnswer(unit, 0.0, longest, -1.0)
    for i, start in enumerate(times[:-1]):
        shared = covered[i + 1 :] - covered[i]  # [E, N], E the later grid points
        lengths = (times[i + 1 :] - start)[:, None]  # [E, 1]
        mean_iou = (shared / (lengths + total - shared)).mean(axis=1)  # [E]
        j = int(mean_iou.argmax())
        if mean_iou[j] > best.train_miou:
            best = BlindAnswer(unit, float(start), float(times[i + 1 + j]), float(mean_iou[j]))
    return best


def _as_shares(query: GroundingQuery) -> list[Segment]:
    assert query.duration_s is not None
    return [(start_s / query.duration_s, end_s / query.duration_s) for start_s, end_s in query.segments]


def blind_baseline(
    train: Sequence[GroundingQuery], heldout: Sequence[GroundingQuery]
) -> tuple[BlindAnswer, GroundingScores]:
    """The best video-blind answer of the train split, and what it scores on the held-out queries.

    The answer is the fixed interval, in seconds or as a share of the duration, with the highest mean IoU on the train
    queries (grid search). Shares are tried only when every query of both splits has a duration. The scores are the
    same metrics as a model's; the answer counts as well formed.
    """
    assert train and heldout, "the blind baseline is chosen on some queries and scored on others"
    candidates = [_best_interval([query.segments for query in train], "seconds")]
    if all(query.duration_s for query in (*train, *heldout)):
        candidates.append(_best_interval([_as_shares(query) for query in train], "share"))
    best = max(candidates, key=lambda answer: answer.train_miou)
    answers = [GroundingAnswer((best.segment(query),), query.segments, well_formed=True) for query in heldout]
    return best, grounding_scores(answers)
