"""Records that travel between the parts: frozen, slotted, units in names, picklable.

Time intervals are `(start_s, end_s)` in seconds from the first frame of the video.
Shapes: T frames, H x W pixels, P prompt tokens, C completion tokens, G responses of one group.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Segment = tuple[float, float]
"""One time interval `(start_s, end_s)`, 0 <= start_s < end_s."""

MAX_TIME_S = 1e12
"""No time of a segment is later, so that sums of times stay finite and exact enough."""

EVALUATION = "evaluation"
"""In place of a phase's name: of issues that are not trained on."""

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
class Issue:
    """One query, issued once: what seeds, books and failures refer to, from the draw to the end of it.

    The same query may be issued again later; that is another issue, with another id and seed.
    """

    issue_id: int
    """Counts the issues of a run, from 0."""
    query: GroundingQuery
    phase: str
    """Name of the phase whose prompt and rewards it gets; `EVALUATION` outside of training."""
    seed: int
    """Same seed, prompt, clip and weights: same group. Different seeds share no random numbers."""
    step: int = 0
    """Optimiser step that it is issued for, from 1; 0 outside of training."""


class VersionSpan(NamedTuple):
    """Tokens in a row that were sampled from one version of the weights."""

    version: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled completion."""

    token_ids: tuple[int, ...]  # [C], the end token included when it was sampled
    logprobs: FloatArray  # [C], of the sampled tokens under the sampling distribution (mask and temperature applied)
    text: str
    """Decoded with special tokens kept visible, the one closing end token removed."""
    finished: bool
    """True when the end token was sampled, False when the length limit cut it."""
    spans: tuple[VersionSpan, ...] = ()
    """Where weights were pushed while it was sampled: which sampled what, in the order of its tokens. Empty where all
    its tokens are of the group's `weight_version`."""


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
class Group:
    """The G responses to one issue and all that became of them: sampled, then scored, then compared."""

    issue: Issue
    clip_key: str
    clip_duration_s: float
    """Length of the video as it was read; the annotation's may be absent or rounded."""
    prompt_ids: tuple[int, ...]  # [P], video placeholders expanded
    responses: tuple[Response, ...]  # [G]
    weight_version: int
    """Weights that it was begun with. Tokens sampled by newer ones are named by `Response.spans`."""
    outcomes: tuple[RewardParts | Unscored, ...] = ()  # [G] once it is scored
    advantages: FloatArray = field(default_factory=lambda: np.empty(0, np.float32))  # [G], NaN of the unscored ones
    """Empty until it is scored, and where fewer than two of its responses are: these cannot be compared."""
    clip_s: float = 0.0
    """Seconds that it waited for its clip, and so on."""
    rollout_s: float = 0.0
    reward_s: float = 0.0

    @property
    def query(self) -> GroundingQuery:
        return self.issue.query

    @property
    def rewards(self) -> tuple[RewardParts, ...]:
        """Of the responses that have one."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, RewardParts))

    @property
    def unscored(self) -> tuple[Unscored, ...]:
        """Responses without a reward: they are in no update."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Unscored))

    @property
    def is_comparable(self) -> bool:
        """At least two of its responses have a reward."""
        return len(self.rewards) > 1

    @property
    def has_equal_rewards(self) -> bool:
        """All its responses earned the same: it teaches nothing but the KL term."""
        return len({parts.total for parts in self.rewards}) == 1

    def for_update(self) -> "Group":
        """With its scored responses alone: what the learner trains on."""
        assert self.is_comparable and len(self.advantages) == len(self.responses)
        if not self.unscored:
            return self
        kept = [index for index, outcome in enumerate(self.outcomes) if isinstance(outcome, RewardParts)]
        return replace(
            self,
            responses=tuple(self.responses[index] for index in kept),
            outcomes=self.rewards,
            advantages=self.advantages[kept],
        )

    @property
    def oldest_version(self) -> int:
        """Of all its tokens: what a bound on their age is about."""
        spans = (span.version for response in self.responses for span in response.spans)
        return min((self.weight_version, *spans))
