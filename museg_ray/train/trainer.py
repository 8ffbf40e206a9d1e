"""The training loop: synchronous and asynchronous by the same code.

    queries ─▶ issue ─▶ make: clip ─▶ G responses ─▶ rewards ─▶ train: update ─▶ weights to the engines
                 ▲                                                                     │
                 └──────────────── a slot, free when the weights trained on it serve ◀─┘

    issued ─▶ made ─▶ trained | filtered | failed                 what the ledger knows of an issue

    pump    waits for                                              unblocked by
    issue   slots for all queries of a step                        train, once weights serve
    make    a clip, a serving engine, a score (one an issue)       clip, rollout and reward crews
    train   all groups of the next step, in the order of issue     make
    watch   nothing: looks at the queues, whether the learner lives, what people wish (handle.py)

Invariant: step s is issued only when the weights trained on step s - 1 - k serve (k = `train.max_staleness`), so no
token is trained that was sampled by weights more than k updates older than the learner's. k = 0 is the synchronous loop
of the paper: every step samples from the weights of the step before.

A learner rank that dies takes training back to the last checkpoint: books, samplers and issues with it; the engines get
that checkpoint's weights under a new version.
"""

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from museg_ray.checkpoints.state import TrainerState, as_untold
from museg_ray.checkpoints.writer import Checkpointer
from museg_ray.clock import now_s
from museg_ray.config.schema import Config
from museg_ray.errors import LearnerLostError, QueryError
from museg_ray.events import EventKind
from museg_ray.ledger.ledger import OpenIssue
from museg_ray.rewards.phases import PhaseStep, phase_steps
from museg_ray.runs.books import Books
from museg_ray.train.autoscale import Autoscaler
from museg_ray.train.groups import GroupMaker
from museg_ray.train.handle import Handle
from museg_ray.train.issues import IssueSource
from museg_ray.train.parts import Parts, check_learner_losses
from museg_ray.train.plan import StepPlan, lookahead
from museg_ray.train.probe import probe_parity
from museg_ray.train.pumps import Act, Pumps, Result
from museg_ray.train.status import queue_sizes, run_status
from museg_ray.train.step import StepMaker
from museg_ray.train.work import StepWork
from museg_ray.types import Issue

WATCH_EVERY_S = 0.05


class Trainer:
    """Makes the steps of all phases over started parts."""

    def __init__(
        self, config: Config, parts: Parts, source: IssueSource, books: Books, checkpoints: Checkpointer
    ) -> None:
        """
        Args:
            config: of the run.
            parts: started.
            source: of the issues.
            books: get every issue, group, step and event.
            checkpoints: of the run.
        """
        self._config, self._parts, self._source = config, parts, source
        self._books, self._checkpoints = books, checkpoints
        self._maker, self._steps = GroupMaker(config, parts, books.events.add), StepMaker(config, parts, books)
        self._handle = Handle(config, parts, self._status, self._stop)
        self._autoscaler = Autoscaler(config, parts.rollouts, books.events)
        self._num_losses = self._furthest = 0  # of the learner since it made a step that was never made before
        self._is_stopping = False
        self._doing = ""  # beside training
        self._step, self._works = 0, dict[int, StepWork]()

    def _stand(self, reached: TrainerState | None, left_open: Sequence[OpenIssue]) -> None:
        """At a checkpoint, or at the very beginning, whatever was before."""
        self._step = reached.step if reached else 0
        self._issued_step = reached.issued_step if reached else 0
        self._sampler_states = reached.sampler_states if reached else {}
        self._steps.stand(reached)
        self._source.restore(self._books.ledger.num_issues, reached)
        self._works = {}
        self._left_open: dict[int, list[Issue]] = defaultdict(list)
        for issue in self._source.reopened(left_open):
            self._left_open[issue.step].append(issue)
        self._slots_freed = asyncio.Event()
        self._is_probed = False

    async def run(
        self, reached: TrainerState | None = None, left_open: Sequence[OpenIssue] = (), export: Act | None = None
    ) -> None:
        """All steps that are left, or those until a person stops the run (`was_stopped`).

        Invariant: with k = 0 a run that is killed at any moment and resumed from a checkpoint gives the numbers of one
        that was never interrupted, but for times, rates, queue peaks and counts of cached clips. So all that a step
        depends on is a function of its number, or in the books up to their marks, or in the `TrainerState`, or in the
        learner's part of the checkpoint.

        Args:
            reached: where a resumed run goes on; its learner holds the weights of then, its engines those of the model
                folder.
            left_open: issues that had not ended then.
            export: of the model after the last step; a learner that is lost even here is no loss.

        Raises:
            MusegError: a part failed for good, or rollout and learner disagree; the run cannot go on.
        """
        self._stand(reached, left_open)
        take_up: Act = partial(self._go_on, reached)
        if self._is_stopping:  # wished while something else was done
            return
        try:
            while (lost := await self._run_until_lost(take_up, export)) is not None:
                take_up = partial(self._go_back, lost)
        except Exception as error:
            for work in self._works.values():
                self._steps.end_untrained(work)
            self._books.fail_open(f"{type(error).__name__}: {error}")
            raise

    async def beside(self, doing: str, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`: something else with the parts (`doing` in words), watched and steered like training."""
        self._doing = doing
        try:
            with self._steps.patience.over("an evaluation", doing):
                return await self._steered(work)
        finally:
            self._doing = ""

    async def _steered(self, work: Coroutine[Any, Any, Result]) -> Result:
        return await Pumps(self._handle.serve()).run(work)

    async def _run_until_lost(self, take_up: Act, export: Act | None) -> LearnerLostError | None:
        """Until all is done, or until the learner is lost."""
        try:
            await self._steered(take_up())
            await self._run_pumps()
            if export is not None and not self.was_stopped:
                await self._steered(export())
        except LearnerLostError as error:
            return error
        return None

    async def _run_pumps(self) -> None:
        self._pumps = Pumps(self._issue(), self._watch(), self._handle.serve())
        await self._pumps.run(self._train())

    async def _issue(self) -> None:
        for step in range(self._step + 1, self._issued_step + 1):
            self._begin_again(self._work(step))
        plans = self._source.plans(self._issued_step + 1)
        for plan, ahead in lookahead(plans, self._config.video.steps_ahead):
            self._parts.clips.prefetch(query.video for each in (plan, *ahead) for query in each.queries)
            await self._slots_for(plan)
            await self._probe(plan)
            self._begin(self._work(plan.step), self._source.issues(plan.step, plan.phase.name, plan.queries))
            self._issued_step, self._sampler_states = plan.step, plan.sampler_states

    async def _make(self, issue: Issue, work: StepWork) -> None:
        try:
            made = await self._maker.make(issue)
        except QueryError as error:  # of this query alone: the others go on
            work.fail(issue, error)
        else:
            work.finish(issue, made)
        if not work.open:
            self._refill_or_complete(work)

    async def _train(self) -> None:
        for step in phase_steps(self._config.train.phases, self._step + 1):
            metrics = await self._steps.make(step, self._work(step.step))
            self._step = step.step
            if step.step > self._furthest:
                self._furthest, self._num_losses = step.step, 0
            del self._works[step.step]
            self._checkpoints.raise_if_failed()
            if self._checkpoints.is_due(step.step) or self._is_stopping:
                await self._checkpoints.begin(self._books.at_checkpoint(self._state(step)))
            if self._is_stopping:
                break
            self._autoscaler.after_step(metrics)
            self._slots_freed.set()
        await self._checkpoints.finish()

    async def _watch(self) -> None:
        """A learner that dies while its groups are awaited is asked for nothing: nobody else would notice."""
        next_ping_s = now_s()
        while True:
            if now_s() >= next_ping_s:
                await self._parts.learner.ping()
                next_ping_s = now_s() + self._config.fleet.ping_every_s
            self._steps.peaks.see(queue_sizes(self._parts, self._works.values()))
            await asyncio.sleep(WATCH_EVERY_S)

    # issue ------------------------------------------------------------------------------------------------------------

    async def _slots_for(self, plan: StepPlan) -> None:
        """Until the weights trained on the step k + 1 before this one serve."""
        while plan.step > self._step + 1 + self._config.train.max_staleness:
            self._slots_freed.clear()
            await self._slots_freed.wait()

    async def _probe(self, plan: StepPlan) -> None:
        """Once, while nothing that was issued is still to be trained."""
        if not self._is_probed and plan.step == self._step + 1:
            self._is_probed = await probe_parity(self._config, self._parts, self._maker, plan)

    def _begin(self, work: StepWork, issues: Sequence[Issue]) -> None:
        """All of them at once: a checkpoint sees a step's issues or none of them."""
        self._books.ledger.issue(issues)
        self._start(work, issues)

    def _begin_again(self, work: StepWork) -> None:
        """A step that was issued before the checkpoint, with the refills that it had then: an issue ends with its step,
        so all of them are open."""
        issues = self._left_open[work.step]
        assert issues, f"step {work.step} was issued, and none of its issues is open"
        self._start(work, issues)

    def _start(self, work: StepWork, issues: Sequence[Issue]) -> None:
        work.begin(issues)
        for issue in issues:
            self._pumps.start(self._make(issue, work))

    # make -------------------------------------------------------------------------------------------------------------

    def _refill_or_complete(self, work: StepWork) -> None:
        """All that was issued for the step has come to an end. Groups that teach nothing are replaced in one go, in the
        order of issue: who replaces whom must not depend on who was quicker."""
        if self._config.train.refill == "zero_variance":
            work.drop_equal()
            count = min(work.num_lacking, max(0, self._config.train.max_refills - work.num_refills))
            if count < work.num_lacking:
                self._books.events.add(EventKind.REFILL, work.lacking())
            if count:
                self._begin(work, self._source.refill(work.step, work.dropped[-1].issue.phase, count))
                return
        work.complete()

    # where it stands --------------------------------------------------------------------------------------------------

    @property
    def was_stopped(self) -> bool:
        """A person has ended the run before its last step."""
        return self._step < self._config.total_steps

    def _work(self, step: int) -> StepWork:
        return self._works.setdefault(step, StepWork(step, self._config.train.prompts_per_step))

    def _state(self, step: PhaseStep) -> TrainerState:
        return TrainerState(
            step=step.step,
            phase=step.phase.name,
            weight_version=self._steps.version,
            issued_step=self._issued_step,
            sampler_states=self._sampler_states,
            refill_states=self._source.refill_states,
            num_empty=self._steps.num_empty,
            untold=as_untold(self._steps.untold),
        )

    def _status(self) -> dict[str, Any]:
        works = [self._works[step] for step in sorted(self._works)]
        return run_status(self._config, self._parts, self._books, self._step, self._steps, works, self._doing)

    def _stop(self) -> str:
        if not self.was_stopped:
            return f"The last step is done; the run ends by itself after this: {self._doing or 'its checkpoint'}."
        self._is_stopping = True
        if self._doing:
            return f"The run ends after this: {self._doing}; --resume begins it again."
        return f"The run ends after step {self._step + 1}, with a checkpoint; --resume goes on from there."

    async def _go_on(self, reached: TrainerState | None) -> None:
        if reached is not None and reached.weight_version > 0:
            await self._steps.publish(reached.weight_version)

    async def _go_back(self, error: LearnerLostError) -> None:
        """Take all up again from the last checkpoint, with a new learner group. The engines stay."""
        self._num_losses += 1
        check_learner_losses(self._num_losses, error)
        self._books.events.add(EventKind.LOSS, f"the learner is lost: {error}", role="learner")
        checkpoint = await self._checkpoints.newest()
        state = checkpoint.read_state() if checkpoint else None
        left_open = self._books.rewind(state)
        self._stand(state.trainer if state else None, left_open)
        await self._parts.learner.restart(checkpoint.learner_dir if checkpoint else None)
        await self._steps.publish(self._steps.next_version)
        self._books.events.add(EventKind.RESTART, f"the learner goes on from step {self._step}", role="learner")
