"""What a run trains on, issue by issue: who is asked next, under which id and seed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from museg_ray.checkpoints.state import TrainerState
from museg_ray.config.schema import Config
from museg_ray.data.sampler import QuerySampler, SamplerState, build_samplers
from museg_ray.errors import CheckpointError
from museg_ray.ledger.ledger import OpenIssue
from museg_ray.train.plan import StepPlan, plan_steps
from museg_ray.types import GroundingQuery, Issue

REFILL_SEED = 1 << 32
"""Added to the run's seed for the queries that take the place of others: an order of its own, so that they do not shift
what later steps draw."""


class IssueSource:
    """Draws queries for steps and turns them into issues.

    Invariant: the seed of an issue follows from the run's seed and the issue's id alone, so that an issue that is
    sampled again, elsewhere or by a resumed run, gets the same group from the same weights.
    """

    def __init__(self, config: Config, queries: Mapping[str, Sequence[GroundingQuery]]) -> None:
        """
        Args:
            config: of the run.
            queries: by annotation file, as the phases name it: `Config.train_file`.
        """
        self._config = config
        self._phases = {phase.name: phase for phase in config.train.phases}
        self._queries = {(path, query.query_id): query for path, of_file in queries.items() for query in of_file}
        self._samplers = build_samplers(config, queries, config.run.seed)
        self._refills = build_samplers(config, queries, config.run.seed + REFILL_SEED)
        self._beginning = _states(self._samplers), _states(self._refills)
        self._num_issued = 0

    @property
    def refill_states(self) -> dict[str, SamplerState]:
        """Of the queries that take the place of others, by annotation file."""
        return _states(self._refills)

    def restore(self, num_issued: int, reached: TrainerState | None) -> None:
        """Go on behind the issues that were made; None: from the very beginning.

        Raises:
            DataError: the states belong to other queries, weights, curriculum or seed.
        """
        self._num_issued = num_issued
        reached_states = (reached.sampler_states, reached.refill_states) if reached else ({}, {})
        samplers = (self._samplers, self._refills)
        for of_kind, beginning, states in zip(samplers, self._beginning, reached_states, strict=True):
            for path, sampler in of_kind.items():  # files that only later phases name have no state yet
                sampler.restore(states.get(path, beginning[path]), self._config.run.accept_changed_data)

    def plans(self, first_step: int) -> Iterator[StepPlan]:
        """The plan of every step from `first_step` on, each drawn when it is asked for."""
        return plan_steps(self._config, self._samplers, first_step)

    def issues(self, step: int, phase: str, queries: Sequence[GroundingQuery]) -> list[Issue]:
        """The next issues, one a query, for a step of a phase."""
        ids = range(self._num_issued, self._num_issued + len(queries))
        self._num_issued = ids.stop
        run_seed, numbered = self._config.run.seed, zip(ids, queries, strict=True)
        return [Issue(id_, query, phase, issue_seed(run_seed, id_), step) for id_, query in numbered]

    def refill(self, step: int, phase: str, count: int) -> list[Issue]:
        """Issues of `count` other queries for a step whose own taught nothing."""
        config = self._phases[phase]
        sampler, share = self._refills[self._config.train_file(config)], self._config.multi_segment_share(config)
        if sampler.multi_segment_share != share:
            sampler.start_phase(share)
        return self.issues(step, phase, sampler.draw(count))

    def reopened(self, left_open: Sequence[OpenIssue]) -> list[Issue]:
        """Issues that had not ended when the books were marked, with the ids and seeds they had.

        Raises:
            CheckpointError: the annotation file lacks a query that the ledger names.
        """
        return [self._reopened(issue) for issue in left_open]

    def _reopened(self, left: OpenIssue) -> Issue:
        path = self._config.train_file(self._phases[left.phase])
        query = self._queries.get((path, left.query_id))
        if query is None:
            raise CheckpointError(
                f"The ledger left query {left.query_id} open, but {path} has no such query: put its row back, or begin "
                "anew by run.restart=true without run.resume, which moves what is there aside as a whole."
            )
        return Issue(left.issue_id, query, left.phase, issue_seed(self._config.run.seed, left.issue_id), left.step)


def _states(samplers: Mapping[str, QuerySampler]) -> dict[str, SamplerState]:
    return {path: sampler.state() for path, sampler in samplers.items()}


def issue_seed(run_seed: int, issue_id: int) -> int:
    """32 bits, different for every issue of a run."""
    return int(np.random.SeedSequence((run_seed, issue_id)).generate_state(1)[0])
