"""The error hierarchy. Every failure a user can cause is one of these, with a message that says
what, where (file, row, key), what was expected and what to do; the command line prints it without a traceback.

* MusegError
  + ConfigError      (ValueError)    a key, a value or a combination of values in the configuration
  + DataError        (ValueError)    an annotation file or one of its rows
  + QueryError                       a query that cannot be sampled: a step goes on without it
    + VideoError     (ValueError)    a video file that is missing, unreadable, or too slow to read
    + UnfitQueryError (ValueError)   too long for the model, or a truth that its video does not have
    + PoisonQueryError (RuntimeError) it ends the engines that sample it
  + ModelError       (ValueError)    a model folder
  + ResourceError    (RuntimeError)  ports, disk, memory, cluster capacity
  + RolloutError     (RuntimeError)  the rollout engines failed
  + RewardError      (RuntimeError)  rewards cannot be computed
  + LearnerError     (RuntimeError)  the learner could not make an update
    + LearnerLostError               one of its processes is gone: it can be started again from a checkpoint
  + WeightSyncError  (RuntimeError)  a weight push failed or left an actor at another version
    + WeightsLostError               the weights were gone before an actor had them
  + ParityError      (RuntimeError)  rollout and learner disagree about the same tokens
  + CheckpointError  (RuntimeError)  a checkpoint, or a run folder to go on with, is damaged or incomplete

All take one message, so that they survive pickling between Ray processes; what else one holds is an attribute.
"""

from enum import StrEnum


class MusegError(Exception):
    """Root of every error that museg_ray raises on purpose."""


class ConfigError(MusegError, ValueError):
    """The configuration is wrong: names the key, what it holds and what it may hold."""


class DataError(MusegError, ValueError):
    """An annotation file is missing or malformed: names file, row and field."""


class QueryError(MusegError):
    """A query cannot be sampled. It is set aside by name, and the others go on."""

    fault: str
    """Why, in one word: what reports count."""


class VideoFault(StrEnum):
    """Why a video cannot be used: what reports count."""

    MISSING = "missing"
    """No such file, or a link that leads nowhere."""
    NO_PERMISSION = "no_permission"
    UNREACHABLE = "unreachable"
    """Its storage does not answer or refuses, or it is no regular file."""
    EMPTY = "empty"
    """0 bytes."""
    NOT_A_VIDEO = "not_a_video"
    """No known container, or one that was cut off before its index."""
    NO_VIDEO_STREAM = "no_video_stream"
    """Sound only."""
    CUT_OFF = "cut_off"
    """It promises more than it holds."""
    CORRUPT = "corrupt"
    """Frames or times that cannot be decoded."""
    DECODER = "decoder"
    """The decoder that is set, decord, does not read files of its kind."""
    TOO_SHORT = "too_short"
    """Fewer than 2 frames, or it lasts no time."""
    TOO_ELONGATED = "too_elongated"
    """No size within the pixel budget keeps its shape."""
    TIMEOUT = "timeout"
    """Reading it took longer than `video.deadline_s` allows."""
    CRASHED = "crashed"
    """It ended the process that read it, or filled its memory, twice."""


class VideoError(QueryError, ValueError):
    """A video cannot be used: names the file and the reason. Never another video in its place."""

    def __init__(self, message: str, fault: VideoFault = VideoFault.CORRUPT) -> None:
        super().__init__(message)
        self.fault: VideoFault = fault


class Unfit(StrEnum):
    """Why a query cannot be asked of its video."""

    TOO_LONG = "too_long"
    """Prompt, video and room for the answer exceed `model.max_tokens`."""
    BEYOND_FILE = "beyond_file"
    """Too little of its truth lies within the video file."""
    OTHER_UNIT = "other_unit"
    """Its truth lies after the end of the video and would fit as milliseconds."""


class UnfitQueryError(QueryError, ValueError):
    """A query does not fit its video or the model: names it, with the arithmetic."""

    def __init__(self, message: str, fault: Unfit = Unfit.TOO_LONG) -> None:
        super().__init__(message)
        self.fault: Unfit = fault


class PoisonQueryError(QueryError, RuntimeError):
    """A query ends the engines that sample it: names it, its video, and how they ended."""

    fault = "killed_engines"


class ModelError(MusegError, ValueError):
    """A model folder cannot be used: names the folder and what is missing in it."""


class ResourceError(MusegError, RuntimeError):
    """The machine or cluster lacks something: ports, disk, memory, CPUs or GPUs."""


class RolloutError(MusegError, RuntimeError):
    """The rollout engine failed on a request; carries the engine's message, since its own errors cannot be pickled."""


class RewardError(MusegError, RuntimeError):
    """Rewards cannot be computed: no actor starts, no group of a step is left, a reward of the user's is out of range,
    or a fault of ours. Never a silent reward of 0."""


class LearnerError(MusegError, RuntimeError):
    """The learner could not make an update: not-finite loss or gradient, a deadline, or its process died."""


class LearnerLostError(LearnerError):
    """A process of the learner is gone or stuck, and with it the state since the last checkpoint."""


class WeightSyncError(MusegError, RuntimeError):
    """A weight push did not reach the rollout actors."""


class WeightsLostError(WeightSyncError):
    """Weights are gone with the process that held them, before an actor had them; the next push brings others."""


class ParityError(MusegError, RuntimeError):
    """Rollout and learner give different log-probs to the same tokens: training would be off-policy unseen."""


class CheckpointError(MusegError, RuntimeError):
    """A checkpoint, or the run folder that it belongs to, is damaged or incomplete: names file and fault."""
