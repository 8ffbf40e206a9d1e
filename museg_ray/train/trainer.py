"""The training loop: TLDR

    queries ─▶ clips ─▶ rollouts (G responses each) ─▶ rewards ─▶ learner update ─▶ weight push ─▶ next step

Synchronous (`max_staleness = 0`): a step's groups are all sampled from the weights of the previous step's end, so the
learner's log-probs before its update must equal the rollout's; their gap is checked every step.

    box        waits for                               unblocked by
    prepare    room for clips ahead                    a clip being used; runs `video.steps_ahead` steps before the rest
    issue      the weight push of the step before      every rollout actor confirming the new version
    score      its own group's rollout                 the group (groups of one step overlap)
    learn      all groups of the step                  the last score or filtered group
    push       the update                              all actors confirming; one that does not ends the run
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from museg_ray.config.schema import Config
from museg_ray.data.sampler import QuerySampler
from museg_ray.errors import LearnerError, ParityError, RewardError, VideoError, VideoFault
from museg_ray.metrics import names
from museg_ray.metrics.groups import group_metrics
from museg_ray.train.groups import GroupMaker, TimedGroup
from museg_ray.train.ledger import Ledger, Outcome
from museg_ray.train.parts import Parts
from museg_ray.train.plan import StepPlan, lookahead, plan_steps
from museg_ray.train.probe import probe_parity
from museg_ray.train.quarantine import Quarantine
from museg_ray.train.state import TrainerState
from museg_ray.types import SampledGroup

MAX_EMPTY_STEPS = 3
QUEUE_WATCH_S = 0.05
"""How often the queues are looked at; a step's queue metrics are the peaks seen."""


@dataclass(frozen=True, slots=True)
class StepResult:
    step: int
    """From 1."""
    phase: str
    groups: list[SampledGroup]
    unreadable: list[VideoError]
    """Of the queries without a group, since the result before."""
    metrics: dict[str, float]


@dataclass(slots=True)
class _QueuePeaks:
    """Most groups at once in each queue during a step."""

    rollout: int = 0
    reward: int = 0


class StepListener(Protocol):
    """Is told of every finished step: display, recorder, rollout log."""

    def __call__(self, result: StepResult) -> None: ...


class AfterStep(Protocol):
    """Is told where the run stands after each step, also after one without an update: checkpoints. Training waits for
    it."""

    async def __call__(self, reached: TrainerState) -> None: ...


class Trainer:
    """Runs the steps of all phases over started parts."""

    def __init__(
        self,
        config: Config,
        parts: Parts,
        samplers: Mapping[str, QuerySampler],
        ledger: Ledger,
        quarantine: Quarantine,
        reached: TrainerState | None = None,
    ) -> None:
        """
        Args:
            config: of the run.
            parts: started.
            samplers: by annotation file, as the phases name it: `Config.train_file`; in a resumed run restored to the
                states in `reached`.
            ledger: gets every query.
            quarantine: gets every response that could not be scored, every query whose video could not be read.
            reached: where a resumed run goes on; its learner holds the weights of then, its engines still those of the
                model folder.
        """
        self._config = config
        self._parts = parts
        self._samplers = samplers
        self._ledger = ledger
        self._quarantine = quarantine
        self._maker = GroupMaker(config, parts, quarantine)
        self._queues = _QueuePeaks()
        self._num_decoded = parts.clips.num_decoded
        self._steps_made = reached.step if reached else 0
        self._num_empty = reached.num_empty if reached else 0  # steps in a row without a readable video
        told_later = reached.unreadable if reached else []
        self._unreadable = [VideoError(message, VideoFault(fault)) for fault, message in told_later]  # not yet told
        self.weight_version = reached.weight_version if reached else 0

    async def run(self, listener: StepListener, after_step: AfterStep) -> None:
        """All steps that are left.

        Invariant: a run that is killed at any moment and resumed from a checkpoint gives the numbers of one that was
        never interrupted, but for times, rates, queue peaks and counts of cached clips. So all that a step depends on
        is a function of its number, or in the `TrainerState`, or in the learner's part of the checkpoint.

        Raises:
            MusegError: a part failed, or rollout and learner disagree; the run cannot go on.
        """
        if self.weight_version > 0:
            await self._push_weights(self.weight_version)
        is_probed = False
        plans = plan_steps(self._config, self._samplers, self._steps_made + 1)
        for plan, ahead in lookahead(plans, self._config.video.steps_ahead):
            is_probed = is_probed or await probe_parity(self._config, self._parts, self._maker, plan)
            if plan.is_first and (plan.phase.fresh_optimizer or plan.phase.fresh_reference):
                await self._parts.learner.start_phase(plan.phase)
            self._parts.clips.prefetch(query.video for step in (plan, *ahead) for query in step.queries)
            result = await self._step(plan)
            if result is not None:
                listener(result)
            await after_step(self._state_after(plan))

    def _state_after(self, plan: StepPlan) -> TrainerState:
        return TrainerState(
            step=plan.step,
            phase=plan.phase.name,
            weight_version=self.weight_version,
            sampler_states=plan.sampler_states,
            num_empty=self._num_empty,
            unreadable=[(error.fault.value, str(error)) for error in self._unreadable],
        )

    async def _step(self, plan: StepPlan) -> StepResult | None:
        """None when no video of the step can be read: it makes no update, and the next result tells of it."""
        start_s = time.monotonic()
        issues = [self._ledger.issue(query, plan.step) for query in plan.queries]
        try:
            results = await self._roll_out(plan)
            rolled_out_s = time.monotonic()
            timed = [result for result in results if isinstance(result, TimedGroup)]
            self._unreadable += [result for result in results if isinstance(result, VideoError)]
            self._count_empty(plan.step, is_empty=not timed)
            learned = await self._learn(plan.step, timed) if timed else {}
        except Exception as error:
            for issue in issues:
                self._ledger.finish(issue, Outcome.FAILED, reason=f"{type(error).__name__}: {error}")
            raise
        for issue, result in zip(issues, results, strict=True):
            self._finish(issue, result)
        if not timed:
            return None
        learned_s = time.monotonic()
        await self._push_weights(self.weight_version + 1)
        end_s = time.monotonic()
        groups = [t.sampled for t in timed]
        metrics = group_metrics(groups, rolled_out_s - start_s) | learned | self._stage_metrics(timed)
        unreadable, self._unreadable = self._unreadable, []
        metrics[names.VIDEO_PREPARED] = float(self._parts.clips.num_decoded - self._num_decoded)
        metrics[names.VIDEO_UNREADABLE] = float(len(unreadable))
        self._num_decoded = self._parts.clips.num_decoded
        metrics[names.TIME_LEARNER_S] = learned_s - rolled_out_s
        metrics[names.TIME_SYNC_S] = end_s - learned_s
        metrics[names.TIME_STEP_S] = end_s - start_s
        return StepResult(plan.step, plan.phase.name, groups, unreadable, metrics)

    def _count_empty(self, step: int, is_empty: bool) -> None:
        """
        Raises:
            VideoError: too many steps in a row had no readable video: the storage is gone.
        """
        self._num_empty = self._num_empty + 1 if is_empty else 0
        if self._num_empty == MAX_EMPTY_STEPS:
            raise VideoError(
                f"No video of the last {MAX_EMPTY_STEPS} steps up to step {step} can be read. {self._unreadable[-1]}"
            )

    def _finish(self, issue: int, result: TimedGroup | VideoError) -> None:
        if isinstance(result, VideoError):
            self._ledger.finish(issue, Outcome.FAILED, reason=str(result))
            return
        reason = result.sampled.filtered_because
        outcome = Outcome.FILTERED if reason else Outcome.TRAINED
        self._ledger.finish(issue, outcome, reason=reason, weight_version=self.weight_version)

    def _stage_metrics(self, timed: list[TimedGroup]) -> dict[str, float]:
        return {
            names.REWARD_QUARANTINED: float(sum(len(t.sampled.unscored) for t in timed)),
            names.TIME_CLIPS_S: max(t.clip_s for t in timed),
            names.TIME_ROLLOUT_S: max(t.rollout_s for t in timed),
            names.TIME_REWARD_S: max(t.reward_s for t in timed),
            names.WEIGHTS_VERSION: float(self.weight_version),
            names.QUEUE_ROLLOUT: float(self._queues.rollout),
            names.QUEUE_REWARD: float(self._queues.reward),
        }

    async def _roll_out(self, plan: StepPlan) -> list[TimedGroup | VideoError]:
        """The step's scored groups, in the order of its queries; each is scored as soon as it is generated. A query
        whose video cannot be read has the reason in its place, and no other video."""
        self._queues = _QueuePeaks()
        tasks = [
            asyncio.create_task(self._maker.make(query, plan.step, index, plan.phase))
            for index, query in enumerate(plan.queries)
        ]
        watch = asyncio.create_task(self._watch_queues())
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in (*tasks, watch):  # after a failure: the others' results have no one to go to
                task.cancel()
            # Until they have ended: a group that is still being scored would take the pool's closing for a failure.
            await asyncio.gather(*tasks, watch, return_exceptions=True)

    async def _watch_queues(self) -> None:
        while True:
            self._queues.rollout = max(self._queues.rollout, self._parts.rollouts.num_waiting)
            self._queues.reward = max(self._queues.reward, self._parts.rewards.num_waiting)
            await asyncio.sleep(QUEUE_WATCH_S)

    async def _learn(self, step: int, timed: list[TimedGroup]) -> dict[str, float]:
        """One optimiser step.

        Raises:
            RewardError: no group of the step is left to learn from.
            LearnerError: see `LearnerHandle.update`; its groups are kept for inspection.
            ParityError: the mean log-prob gap exceeds `train.max_logprob_gap`. At staleness 0 both sides hold the same
                weights, so a gap means stale weights or positions, and training would be off-policy without a sign.
        """
        groups = [t.sampled.scored for t in timed if t.sampled.scored is not None]
        if not groups:
            raise RewardError(
                f"No group of the step could be scored: {timed[-1].sampled.filtered_because}. "
                f"Their texts and all reasons are in {self._quarantine.path}."
            )
        clips = {t.sampled.group.clip_key: t.clip for t in timed if t.sampled.scored is not None}
        try:
            learned = await self._parts.learner.update(groups, clips, step)
        except LearnerError as error:
            path = self._quarantine.keep_update(step, groups)
            raise LearnerError(f"{error} The groups of step {step} are in {path}.") from error
        gap, limit = learned[names.PARITY_GAP_MEAN], self._config.train.max_logprob_gap
        if not gap <= limit:  # also for a gap that is no number
            raise ParityError(
                f"Rollout and learner log-probs of the same tokens differ by {gap:.2e} nats on average "
                f"(largest {learned[names.PARITY_GAP_MAX]:.2e}), more than train.max_logprob_gap = {limit:.0e}, "
                f"at weight version {self.weight_version}. A push that left weights behind or wrong video positions "
                "look like this; for bfloat16 engines a limit of about 0.1 is usual."
            )
        return learned

    async def _push_weights(self, version: int) -> None:
        blob = await self._parts.learner.export_weights()
        await self._parts.rollouts.push_weights(version, blob)
        self.weight_version = version
