"""The error hierarchy. Every failure a user can cause is one of these, with a message that says
what, where (file, row, key), what was expected and what to do; the command line prints it without a traceback.

* MusegError
  + ConfigError      (ValueError)    a key, a value or a combination of values in the configuration
  + DataError        (ValueError)    an annotation file or one of its rows
  + VideoError       (ValueError)    a video file that is missing, unreadable, or too slow to read
  + ModelError       (ValueError)    a model folder
  + ResourceError    (RuntimeError)  ports, disk, memory, cluster capacity
  + RolloutError     (RuntimeError)  the rollout engine failed
  + RewardError      (RuntimeError)  rewards cannot be computed
  + LearnerError     (RuntimeError)  the learner could not make an update
  + WeightSyncError  (RuntimeError)  a weight push failed or left an actor at another version
  + ParityError      (RuntimeError)  rollout and learner disagree about the same tokens

All take one message and nothing else, so that they survive pickling between Ray processes.
"""


class MusegError(Exception):
    """Root of every error that museg_ray raises on purpose."""


class ConfigError(MusegError, ValueError):
    """The configuration is wrong: names the key, what it holds and what it may hold."""


class DataError(MusegError, ValueError):
    """An annotation file is missing or malformed: names file, row and field."""


class VideoError(MusegError, ValueError):
    """A video cannot be used: names the file and the reason. Never another video in its place."""


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


class WeightSyncError(MusegError, RuntimeError):
    """A weight push did not reach every rollout actor."""


class ParityError(MusegError, RuntimeError):
    """Rollout and learner give different log-probs to the same tokens: training would be off-policy unseen."""
