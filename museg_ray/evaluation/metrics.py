"""Grounding metrics over a set of queries: how well predicted segments answer "when does this happen?"."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from museg_ray.rewards.segments import iou
from museg_ray.types import Segment

IOU_THRESHOLD = 0.5
"""A predicted segment finds a true one when their IoU is at least this."""


@dataclass(frozen=True, slots=True)
class GroundingAnswer:
    """What one query got, and what it asked for."""

    predicted: tuple[Segment, ...]
    """Empty when the answer was invalid."""
    truth: tuple[Segment, ...]
    """At least one segment."""
    well_formed: bool
    """The response earned the format reward."""


@dataclass(frozen=True, slots=True)
class GroundingScores:
    """Means over queries, each in [0, 1]. None where no query is of the kind that a metric is about."""

    miou: float
    """IoU of the predicted and the true covered time, over all queries."""
    r1_at_05: float | None
    """Share of the single-segment queries whose first predicted segment has IoU >= 0.5 (R1@0.5)."""
    multi_f1_at_05: float | None
    """F1 of segments at IoU 0.5, one-to-one, over the multi-segment queries."""
    count_accuracy: float
    """Share of queries with the right number of segments."""
    format_rate: float
    """Share of queries with a well-formed response."""

    def as_dict(self) -> dict[str, float]:
        """The metrics by name, those that are None left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def segment_f1(predicted: Sequence[Segment], truth: Sequence[Segment]) -> float:
    """F1 at IoU 0.5 in [0, 1]: 2 k / (n + m), k the most pairs with IoU >= 0.5 in a one-to-one matching.

    The published evaluation matches many to one, so that a segment predicted twice costs nothing there.
    """
    hits = np.array([[iou([p], [t]) >= IOU_THRESHOLD for t in truth] for p in predicted]).reshape(-1, len(truth))
    num_pairs = hits[linear_sum_assignment(hits, maximize=True)].sum()
    return float(2 * num_pairs / (len(predicted) + len(truth)))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def grounding_scores(answers: Sequence[GroundingAnswer]) -> GroundingScores:
    """All metrics of a set of answers, at least one."""
    assert answers, "metrics need at least one query"
    single = [answer for answer in answers if len(answer.truth) == 1]
    multi = [answer for answer in answers if len(answer.truth) > 1]
    return GroundingScores(
        miou=float(np.mean([iou(answer.predicted, answer.truth) for answer in answers])),
        r1_at_05=_mean([iou(answer.predicted[:1], answer.truth) >= IOU_THRESHOLD for answer in single]),
        multi_f1_at_05=_mean([segment_f1(answer.predicted, answer.truth) for answer in multi]),
        count_accuracy=float(np.mean([len(answer.predicted) == len(answer.truth) for answer in answers])),
        format_rate=float(np.mean([answer.well_formed for answer in answers])),
    )
