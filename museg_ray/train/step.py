"""One optimiser step: its groups to the learner, its weights to the engines, what it said to the books."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from museg_ray.checkpoints.state import TrainerState
from museg_ray.checkpoints.writer import to_the_end
from museg_ray.clock import now_s
from museg_ray.config.schema import Config
from museg_ray.errors import LearnerError, LearnerLostError, QueryError, VideoError, WeightsLostError
from museg_ray.events import EventKind
from museg_ray.ledger.ledger import Outcome
from museg_ray.metrics import names
from museg_ray.rewards.phases import PhaseStep
from museg_ray.runs.books import Books
from museg_ray.runs.step_result import StepResult
from museg_ray.train.checks import check_age, check_empty_steps, check_gap, comparable_groups, unscored_reason
from museg_ray.train.parts import Parts
from museg_ray.train.patience import Patience
from museg_ray.train.probe import PushProbe
from museg_ray.train.status import waited_for
from museg_ray.train.step_metrics import QueuePeaks, push_metrics, step_metrics
from museg_ray.train.work import EQUAL_REWARDS, StepWork
from museg_ray.types import Group


class StepMaker:
    """Makes one step after the other; knows the version that serves."""

    def __init__(self, config: Config, parts: Parts, books: Books) -> None:
        self._config, self._parts, self._books = config, parts, books
        self.peaks = QueuePeaks()
        self.patience = Patience(partial(books.events.add, EventKind.WAIT), partial(waited_for, parts))
        self.version = 0
        """Of the weights that the learner and all that serve have."""
        self.next_version = 1
        self.is_learning = False
        self.pushed: dict[str, float] = {}
        """Metrics of the last push."""
        self._probe = PushProbe(config, parts)
        self._num_decoded = parts.clips.num_decoded
        self.stand(None)

    def stand(self, reached: TrainerState | None) -> None:
        """At a checkpoint, or at the very beginning."""
        self.is_learning = False
        self.num_empty = reached.num_empty if reached else 0
        """Steps in a row without a group."""
        self.untold: list[QueryError] = reached.untold_failures() if reached else []
        """Told with the next result."""
        self._ended_s = 0.0

    async def _begin_phase(self, step: PhaseStep) -> None:
        """Exactly at its first step: what is fresh must not have been trained in it yet."""
        self._books.events.add(EventKind.PHASE, f"phase {step.phase.name} begins", phase=step.phase.name)
        if step.phase.fresh_optimizer or step.phase.fresh_reference:
            await self._parts.learner.start_phase(step.phase)

    async def make(self, step: PhaseStep, work: StepWork) -> dict[str, float]:
        """One optimiser step, once its groups are there, and its metrics; or none, when no group came of its queries:
        the next result tells of those."""
        with self.patience.over("a step", f"step {step.step}"):
            waited_from_s = now_s()
            await work.is_complete.wait()
            waited_s = now_s() - waited_from_s
            if step.is_first:
                await self._begin_phase(step)
            return await self._make(step, work, waited_s)

    async def _make(self, step: PhaseStep, work: StepWork, waited_s: float) -> dict[str, float]:
        self.end_untrained(work)
        self.untold += [error for _, error in work.failures]
        self.num_empty = 0 if work.made else self.num_empty + 1
        check_empty_steps(self.num_empty, step.step, self.untold)
        if not work.made:
            self._books.keep_groups(work.dropped)
            return {}
        started_s, version = now_s(), self.version
        self.is_learning = True
        learned = await self._learn(step.step, work)
        self.is_learning, learned_s = False, now_s()
        await self.publish(version + 1)
        self._end_trained(work)
        ended_s = now_s()
        times = {
            names.TIME_WAIT_S: waited_s,
            names.TIME_LEARNER_S: learned_s - started_s,
            names.TIME_SYNC_S: ended_s - learned_s,
            names.TIME_STEP_S: ended_s - max(work.begun_s, self._ended_s),
        }
        self._ended_s = ended_s
        metrics = step_metrics(work, version, self.peaks.take()) | learned | times | self.pushed | self._told_metrics()
        failures, self.untold = self.untold, []
        groups = [made.group for made in work.in_order] + work.dropped
        self._books.on_step(StepResult(step.step, step.phase.name, groups, failures, metrics))
        return metrics

    async def _learn(self, step: int, work: StepWork) -> dict[str, float]:
        """The update of one step.

        Raises:
            RewardError: no group of the step is left to learn from.
            LearnerError: see `LearnerHandle.update`; its groups are kept for inspection.
            ParityError: see `check_gap`.
        """
        groups = comparable_groups(work, self._books.quarantine.path)
        check_age(groups, self.version, self._config.train.max_staleness)
        try:
            learned = await self._update(groups, work, step)
        except LearnerLostError:
            raise
        except LearnerError as error:
            path = self._books.quarantine.keep_update(step, groups)
            raise LearnerError(f"{error} The groups of step {step} are in {path}.") from error
        check_gap(learned, self.version, self._config.train.max_logprob_gap)
        return learned

    async def _update(self, groups: Sequence[Group], work: StepWork, step: int) -> dict[str, float]:
        learner, clips = self._parts.learner, {made.group.clip_key: made.clip for made in work.in_order}
        with suppress(VideoError):  # one left the store meanwhile, or the machine that has it: prepared once more
            return await learner.update(groups, clips, step)
        try:
            again = await asyncio.gather(*(self._parts.clips.get(group.query.video, anew=True) for group in groups))
            clips = {clip.prepared.key: clip for clip in again}
            if changed := [group.query.video for group in groups if group.clip_key not in clips]:
                raise LearnerLostError(f"{changed[0]} has changed since it was sampled for step {step}")
            return await learner.update(groups, clips, step)
        except VideoError as error:  # taken back, its query fails by itself
            raise LearnerLostError(f"it cannot have a clip of step {step}: {error}") from error

    def end_untrained(self, work: StepWork) -> None:
        """Write down what is known of a step's groups, once; those to be trained stay open.

        Invariant: this comes with the step and not when each came to its end. A checkpoint between the two would have a
        step without some of its issues, and a run that resumes from it would replace them once more, and tell nobody.
        """
        if work.is_told:
            return
        work.is_told = True
        for issue, error in work.failures:
            self._books.quarantine.add_query(issue, error)
            self._books.ledger.end(issue.issue_id, Outcome.FAILED, reason=str(error))
        for group in work.dropped:
            self._books.quarantine.add(group)
            self._books.ledger.end(group.issue.issue_id, Outcome.FILTERED, EQUAL_REWARDS, group.weight_version)
        for made in work.in_order:
            self._books.quarantine.add(made.group)

    def _end_trained(self, work: StepWork) -> None:
        for made in work.in_order:
            issue, group = made.group.issue, made.group
            if group.is_comparable:
                self._books.ledger.end(issue.issue_id, Outcome.TRAINED, weight_version=group.weight_version)
            else:
                reason = unscored_reason(group)
                self._books.ledger.end(issue.issue_id, Outcome.FILTERED, reason, group.weight_version)

    async def publish(self, version: int) -> None:
        """Give the learner's weights to the engines, under a version above all before.

        Raises:
            LearnerLostError: its process is gone, or was before the engines had its weights.
        """
        self.next_version = version + 1  # also where it is broken off: some engines may have it by then
        with self.patience.over("a push", f"the push of weights {version}"):
            try:
                weights = await self._parts.weights.publish(version, self._parts.rollouts.nodes)
                # To the end, also where the learner is found lost meanwhile: no engine may be left half updated.
                confirmed = await to_the_end(self._parts.rollouts.publish(version, weights))
            except WeightsLostError as error:
                raise LearnerLostError(str(error)) from error
            began_s = now_s()
            gap = await self._probe.check()
        self.pushed = push_metrics(self._parts.weights.phases_s, confirmed, now_s() - began_s, gap)
        self.version = version

    def _told_metrics(self) -> dict[str, float]:
        """Of this step and those without an update before it."""
        num_decoded = self._parts.clips.num_decoded
        since, self._num_decoded = num_decoded - self._num_decoded, num_decoded
        return {
            names.VIDEO_PREPARED: float(since),
            names.VIDEO_UNREADABLE: float(sum(isinstance(error, VideoError) for error in self.untold)),
            names.WEIGHTS_VERSION: float(self.version),
        }
