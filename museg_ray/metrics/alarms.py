"""Alarms: the ways in which such a training is known to fail, looked for while it runs.

An alarm compares means over the last `config.alarms.window_steps` steps of a phase that have the number with limits of
`config.alarms`; `skipped_updates` looks at every single step, `gap_grows` at the last one of a window.
None of them proves anything; each says what it saw and what to look at first.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median

from museg_ray.config.schema import AlarmConfig, PhaseConfig, RewardWeights
from museg_ray.metrics import names


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that looks wrong in a stretch of steps."""

    name: str
    """`single_segment`; its metric is `alarm/single_segment`."""
    first_step: int
    """The steps of the window, first and last included."""
    last_step: int
    saw: str
    """The numbers and the limit, in words."""
    check: str
    """What to look at first."""

    @property
    def steps(self) -> str:
        """`steps 41 to 60`."""
        if self.first_step == self.last_step:
            return f"step {self.last_step}"
        return f"steps {self.first_step} to {self.last_step}"

    def as_dict(self) -> dict[str, str | int]:
        """For JSON; `Alarm(**row)` reads it back."""
        return asdict(self)


def alarm_name(metric: str) -> str:
    """`alarm/single_segment` -> `single_segment`."""
    return metric.removeprefix("alarm/")


@dataclass(frozen=True, slots=True)
class _View:
    """What the alarms look at after a step."""

    limits: AlarmConfig
    means: Mapping[str, float]
    """Metric -> mean over its window, where that is full."""
    gaps: Sequence[float]
    """Mean log-prob gaps of the window, oldest first."""
    weights: RewardWeights
    """Of the present phase."""
    matching_before: float | None
    """r_M over the last full window of the phases before; None without such a window."""
    best_format: float
    """Highest r_F of a window so far, the present one included."""


Finding = dict[str, str]
"""Metric -> what its window shows in words; empty when all is well."""


def _single_segment(view: _View) -> Finding:
    what = "of the valid answers to multi-segment queries name one segment"
    return _share_above(view, names.ANSWER_SINGLE_SEGMENT_SHARE, view.limits.max_single_segment_share, what)


def _timestamp_stuck(view: _View) -> Finding:
    if not view.weights.timestamp:
        return {}
    return _mean_below(view, names.REWARD_TIMESTAMP, view.limits.min_timestamp, "r_T is {:.3f} on average")


def _matching_falls(view: _View) -> Finding:
    now, before, limit = view.means.get(names.REWARD_MATCHING), view.matching_before, view.limits.matching_drop
    if not view.weights.matching or now is None or before is None or before - now <= limit:
        return {}
    fall = f"{before - now:.3f} below the end of the phase before ({before:.3f})"
    return {names.REWARD_MATCHING: f"r_M is {now:.3f} on average, {fall}; the limit is {limit:g}"}


def _variance_collapse(view: _View) -> Finding:
    words = "the rewards of a group deviate by {:.4f} on average"
    return _mean_below(view, names.REWARD_STD, view.limits.min_reward_std, words)


def _truncated(view: _View) -> Finding:
    what = "of the responses are cut by the length limit"
    return _share_above(view, names.ROLLOUT_TRUNCATED_SHARE, view.limits.max_truncated_share, what)


def _format_falls(view: _View) -> Finding:
    now, best, limit = view.means.get(names.REWARD_FORMAT), view.best_format, view.limits.format_drop
    if not view.weights.format or now is None or best - now <= limit:
        return {}
    fall = f"{best - now:.3f} below its best window ({best:.3f})"
    return {names.REWARD_FORMAT: f"r_F is {now:.3f} on average, {fall}; the limit is {limit:g}"}


def _video_blind(view: _View) -> Finding:
    limits = view.limits
    same = "of the valid answers are one and the same, given for different videos"
    full = "of the valid answers cover a whole video whose truth does not"
    return _share_above(view, names.ANSWER_SAME_SHARE, limits.max_same_answer_share, same) | _share_above(
        view, names.ANSWER_FULL_LENGTH_SHARE, limits.max_full_length_share, full
    )


def _gap_grows(view: _View) -> Finding:
    limits = view.limits
    if len(view.gaps) < max(2, limits.window_steps):
        return {}
    *before, gap = view.gaps
    usual = median(before)
    if gap <= max(limits.min_gap, limits.max_gap_factor * usual):
        return {}
    saw = f"the mean log-prob gap is {gap:.1e} nats, and was {usual:.1e} (median)"
    return {names.PARITY_GAP_MEAN: f"{saw}; the limit is {limits.max_gap_factor:g} times that"}


def _skipped_updates(view: _View) -> Finding:
    skipped, most = view.means.get(names.LEARNER_SKIPPED), view.limits.max_skipped_updates
    if skipped is None or skipped <= most:
        return {}
    why = "left out because loss or gradient was not finite"
    return {names.LEARNER_SKIPPED: f"updates of the step {why}: {skipped:g}; the limit is {most:g}"}


def _share_above(view: _View, metric: str, most: float, what: str) -> Finding:
    share = view.means.get(metric)
    if share is None or share <= most:
        return {}
    return {metric: f"{100 * share:.1f} % {what}, above {100 * most:g} %"}


def _mean_below(view: _View, metric: str, least: float, words: str) -> Finding:
    mean = view.means.get(metric)
    return {} if mean is None or mean >= least else {metric: f"{words.format(mean)}, below {least:g}"}


@dataclass(frozen=True, slots=True)
class _Rule:
    metric: str
    """`alarm/<name>`"""
    find: Callable[[_View], Finding]
    check: str


_RULES = (
    _Rule(
        names.ALARM_SINGLE_SEGMENT,
        _single_segment,
        "is local matching on? rewards.local_matching must not be none, and weights.matching not 0: nothing else "
        "punishes a missing segment. Then raise data.multi_segment_share.",
    ),
    _Rule(
        names.ALARM_TIMESTAMP_STUCK,
        _timestamp_stuck,
        "does the prompt of this phase ask for timestamps, and does the reasoning hold the times of the answer as "
        "plain numbers (12.5, not 0:12)? `museg reward explain` shows which count.",
    ),
    _Rule(
        names.ALARM_MATCHING_FALLS,
        _matching_falls,
        "was the timestamp reward kept too long? End the phase that weighs it sooner (its steps in train.phases). "
        "Else look whether learner/kl jumped at the switch, and lower learner.learning_rate.",
    ),
    _Rule(
        names.ALARM_VARIANCE_COLLAPSE,
        _variance_collapse,
        "equal rewards teach nothing. Has the policy settled on one answer (answer/same_share)? Raise "
        "rollout.temperature; in the next run lower learner.learning_rate or raise algo.beta.",
    ),
    _Rule(
        names.ALARM_TRUNCATED,
        _truncated,
        "read the responses in report.html. If they are sound, raise rollout.max_completion_tokens and "
        "model.max_tokens; if they ramble, weigh brevity (weights.brevity, rewards.brevity).",
    ),
    _Rule(
        names.ALARM_FORMAT_FALLS,
        _format_falls,
        "`museg reward explain` says what is wrong with a response. Are responses cut (rollout/truncated_share), is "
        "weights.format above 0, does this phase's prompt ask for both blocks? Else lower learner.learning_rate.",
    ),
    _Rule(
        names.ALARM_VIDEO_BLIND,
        _video_blind,
        "does it look at the video? Compare its score with blind and swapped in the evaluation: near blind, or as "
        "good on swapped videos, means no. Train on more varied videos, lower learner.learning_rate, raise algo.beta.",
    ),
    _Rule(
        names.ALARM_GAP_GROWS,
        _gap_grows,
        "engines and learner no longer compute the same model. Did a push (events.jsonl) or a new phase come before? "
        "Stop, go on from a checkpoint before it with --resume, and compare; lower train.max_logprob_gap.",
    ),
    _Rule(
        names.ALARM_SKIPPED_UPDATES,
        _skipped_updates,
        "did learner/kl or learner/grad_norm climb in the steps before? Lower learner.learning_rate. With several "
        "updates a step (algo.num_epochs, algo.num_minibatches) also set algo.dual_clip, 3 say: it bounds the ratio.",
    ),
)
_WATCHED_STEPWISE = (names.LEARNER_SKIPPED,)
"""Their window is the last step that has them."""


class AlarmWatch:
    """Watches the metrics of a run, step after step.

    Its state follows from the metrics alone: a resumed run gets it back by calling `observe` with the rows of
    metrics.jsonl in their order.
    """

    def __init__(self, config: AlarmConfig, phases: Sequence[PhaseConfig]) -> None:
        self._limits = config
        self._weights = {phase.name: phase.weights for phase in phases}
        self._phase_name: str | None = None  # before the first step
        lengths = dict.fromkeys(names.METRICS, config.window_steps) | dict.fromkeys(_WATCHED_STEPWISE, 1)
        self._windows = {metric: deque[tuple[int, float]](maxlen=length) for metric, length in lengths.items()}
        self._matching_before: float | None = None
        self._best_format = 0.0
        self._raised: set[str] = set()  # metrics of the alarms that hold at present

    def observe(self, step: int, phase_name: str, metrics: Mapping[str, float]) -> list[Alarm]:
        """Take in a finished step; the alarms that were not raised after the step before.

        A metric that a step lacks leaves its window as it is. A new phase starts all windows, and so all alarms, anew.

        Args:
            step: optimiser step, from 1; every step once, in order.
            phase_name: its phase, as in `phases`.
            metrics: metric name -> value; further keys are ignored, so a row of metrics.jsonl will do.
        """
        if self._limits.window_steps == 0:
            return []
        if phase_name != self._phase_name:
            self._enter(phase_name)
        for metric, window in self._windows.items():
            if metric in metrics:
                window.append((step, metrics[metric]))
        view = self._view()
        found = {rule: finding for rule in _RULES if (finding := rule.find(view))}
        new = [self._alarm(rule, finding) for rule, finding in found.items() if rule.metric not in self._raised]
        self._raised = {rule.metric for rule in found}
        return new

    def states(self) -> dict[str, float]:
        """The metrics `alarm/*` after the last step: 1 while raised, else 0; none when alarms are off."""
        if self._limits.window_steps == 0:
            return {}
        return {rule.metric: float(rule.metric in self._raised) for rule in _RULES}

    def _enter(self, phase_name: str) -> None:
        # A phase shorter than the window leaves what the one before it reached.
        self._matching_before = self._means().get(names.REWARD_MATCHING, self._matching_before)
        self._phase_name = phase_name
        self._raised = set()
        for window in self._windows.values():
            window.clear()

    def _means(self) -> dict[str, float]:
        """Of the windows that are full."""
        return {
            metric: fmean(value for _, value in window)
            for metric, window in self._windows.items()
            if len(window) == window.maxlen
        }

    def _view(self) -> _View:
        means = self._means()
        self._best_format = max(self._best_format, means.get(names.REWARD_FORMAT, 0.0))
        assert self._phase_name is not None, "a step has been observed"
        gaps = [gap for _, gap in self._windows[names.PARITY_GAP_MEAN]]
        weights = self._weights[self._phase_name]
        return _View(self._limits, means, gaps, weights, self._matching_before, self._best_format)

    def _alarm(self, rule: _Rule, finding: Finding) -> Alarm:
        steps = [step for metric in finding for step, _ in self._windows[metric]]
        saw = "; ".join(finding.values())
        return Alarm(alarm_name(rule.metric), min(steps), max(steps), saw, rule.check)
