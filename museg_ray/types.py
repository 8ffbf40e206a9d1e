"""Records that travel between the parts: frozen, slotted, units in names, picklable.

Time intervals are `(start_s, end_s)` in seconds from the first frame of the video.
Shapes: T frames, H x W pixels, P prompt tokens, C completion tokens, G responses of one group.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Segment = tuple[float, float]
"""One time interval `(start_s, end_s)`, 0 <= start_s < end_s."""

MAX_TIME_S = 1e12
"""No time of a segment is later, so that sums of times stay finite and exact enough."""

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GroundingQuery:
    """One question about one video: "when does this happen?" and its true answer."""

    query_id: str
    """Unique within its annotation file: `<file stem>/<idx>`."""
    video: str
    """Absolute path or URL of the video file."""
    question: str
    """What to look for, e.g. `the red circle is visible`; the prompt template surrounds it."""
    segments: tuple[Segment, ...]
    """Ground truth, sorted by start, in seconds."""
    duration_s: float | None = None
    """Length of the video as annotated; None where the annotation has none."""
    task: str = "tvg"
    """`tvg` (one segment asked for) or `tal` (all segments)."""
    source: str = ""
    """Corpus that it comes from, e.g. `charades`; empty where the annotation does not tell."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A prepared video: chosen frames at their final size. Nobody resamples or resizes it again."""

    key: str
    """Names content, times and settings together; it is the engine's cache key, so it must be unique to all three."""
    video: str
    frames: ByteArray  # [T, H, W, 3] uint8 RGB, T even, H and W multiples of `video.size_multiple`
    times_s: FloatArray  # [T] presentation time of each frame
    duration_s: float

    @property
    def sample_fps(self) -> float:
        """Frames a second after selection; what the temporal positions are computed from."""
        return len(self.frames) / self.duration_s


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled completion."""

    token_ids: tuple[int, ...]  # [C], the end token included when it was sampled
    logprobs: FloatArray  # [C], of the sampled tokens under the sampling distribution (mask and temperature applied)
    text: str
    """Decoded with special tokens kept visible, the one closing end token removed."""
    finished: bool
    """True when the end token was sampled, False when the length limit cut it."""


@dataclass(frozen=True, slots=True)
class ResponseGroup:
    """The G responses to one query, all sampled from the same prompt under one weight version."""

    query: GroundingQuery
    clip_key: str
    clip_duration_s: float
    """Length of the video as it was read; the annotation's may be absent or rounded."""
    prompt_ids: tuple[int, ...]  # [P], video placeholders expanded
    responses: tuple[Response, ...]  # [G]
    weight_version: int
    """Version of the weights that sampled EVERY token of the group (checked in the rollout actor)."""


class RewardParts(NamedTuple):
    """What one response earned. Each part is finite and in [0, 1]; `total` is the phase's weighted sum.

    A tuple and not a dataclass: thousands of them are made and sent between processes every second, at a third of the
    cost.
    """

    total: float
    global_match: float
    """r_G, of the answer's covered time against the true one."""
    local_match: float
    """r_L, of single segments against their counterparts."""
    matching: float
    """r_M = (r_G + r_L) / 2."""
    timestamp: float
    """r_T"""
    format: float
    """r_F"""
    predicted: tuple[Segment, ...] = ()
    """The segments read from the answer, sorted; empty when the answer is invalid."""
    extras: tuple[tuple[str, float], ...] = ()
    """(name, value) of every further reward that the phase weighs."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """A response that no reward actor could score, twice. It has no reward: a 0 would be a lie that trains."""

    text: str
    reasons: tuple[str, ...]
    """One a try."""


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its rewards and advantages: what the learner trains on."""

    group: ResponseGroup
    rewards: tuple[RewardParts, ...]  # [G]
    advantages: FloatArray  # [G]


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """All that was sampled for a query, and what became of it."""

    group: ResponseGroup
    outcomes: tuple[RewardParts | Unscored, ...]  # [G]
    scored: ScoredGroup | None
    """Its scored responses, as the learner gets them; None when fewer than two are, and the group is filtered."""

    @property
    def unscored(self) -> tuple[Unscored, ...]:
        """Responses without a reward: they are in no update."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Unscored))

    @property
    def advantages(self) -> tuple[float | None, ...]:
        """[G] None where a response is in no update."""
        known = iter(self.scored.advantages if self.scored is not None else ())
        is_in_update = [self.scored is not None and isinstance(outcome, RewardParts) for outcome in self.outcomes]
        return tuple(float(next(known)) if is_in else None for is_in in is_in_update)

    @property
    def filtered_because(self) -> str:
        """Why the group is in no update; empty when it is in one."""
        if self.scored is not None:
            return ""
        return (
            f"{len(self.unscored)} of its responses could not be scored, the last one: {self.unscored[-1].reasons[-1]}"
        )
