"""What the coming steps train on, known before they begin.

A plan is drawn lazily: who takes some ahead, to prepare their videos, has the samplers ahead of training too. So each
plan carries the samplers' states after its own draw; a checkpoint takes those of the step that was trained.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.data.sampler import QuerySampler, SamplerState
from museg_ray.rewards.phases import phase_steps
from museg_ray.types import GroundingQuery


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimiser step that is still to be made."""

    step: int
    """From 1."""
    phase: PhaseConfig
    queries: list[GroundingQuery]
    sampler_states: dict[str, SamplerState]
    """Of all samplers after this step's draw, by annotation file: where a run resumes that has trained it."""


def plan_steps(config: Config, samplers: Mapping[str, QuerySampler], first_step: int = 1) -> Iterator[StepPlan]:
    """The plan of every step from `first_step` on, each drawn when it is asked for.

    Args:
        config: of the run.
        samplers: by annotation file, as the phases name it (`Config.train_file`), and its alone; for a later first step
            restored to the states of the step before.
        first_step: from 1.

    Raises:
        DataError: a phase asks for a kind of queries that its file has not; or the curriculum failed for a query.
    """
    for step, phase, is_first in phase_steps(config.train.phases, first_step):
        sampler = samplers[config.train_file(phase)]
        if is_first:
            sampler.start_phase(config.multi_segment_share(phase))
        queries = sampler.draw(config.train.prompts_per_step)
        states = {path: each.state() for path, each in samplers.items()}
        yield StepPlan(step, phase, queries, states)


def lookahead(plans: Iterator[StepPlan], count: int) -> Iterator[tuple[StepPlan, list[StepPlan]]]:
    """Each plan, with those among the next `count` that it is the first to see: a prefetcher is told of each once.

    The very first plan is nobody's future, so it is told to nobody.
    """
    ahead: deque[StepPlan] = deque()
    while present := ahead.popleft() if ahead else next(plans, None):
        new = list(islice(plans, count - len(ahead)))
        ahead.extend(new)
        yield present, new
