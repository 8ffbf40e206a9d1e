"""The groups of one optimiser step, from the issue of its queries to their update."""

import asyncio
from collections.abc import Iterable

from museg_ray.clock import now_s
from museg_ray.errors import QueryError
from museg_ray.train.groups import Made
from museg_ray.types import Group, Issue

EQUAL_REWARDS = "its responses all earned the same: nothing to learn from"


class StepWork:
    """Who is on the way, and what has come of the others."""

    def __init__(self, step: int, num_wanted: int) -> None:
        """`num_wanted`: groups; what is issued beyond them takes the place of others."""
        self.step, self._num_wanted = step, num_wanted
        self.open: dict[int, Issue] = {}
        """By id, of the issues that have no end yet."""
        self.made: dict[int, Made] = {}
        """By id of the issue: what the step trains on, or cannot compare."""
        self.dropped: list[Group] = []
        """Sampled, and left out because they teach nothing."""
        self.failures: list[tuple[Issue, QueryError]] = []
        """Issues without a group, and why."""
        self.is_told = False
        """Its failures and what it has dropped are in the books."""
        self._num_issued = 0
        self.is_complete = asyncio.Event()
        """No issue is on its way any more, and none will come."""
        self.begun_s = self.ended_s = 0.0

    def begin(self, issues: Iterable[Issue]) -> None:
        self.begun_s = self.begun_s or now_s()
        begun = {issue.issue_id: issue for issue in issues}
        self.open |= begun
        self._num_issued += len(begun)

    def finish(self, issue: Issue, made: Made) -> None:
        del self.open[issue.issue_id]
        self.made[issue.issue_id] = made

    def fail(self, issue: Issue, error: QueryError) -> None:
        del self.open[issue.issue_id]
        self.failures.append((issue, error))

    def drop_equal(self) -> None:
        """Take out the groups whose responses all earned the same."""
        equal = [made.group for made in self.made.values() if made.group.is_comparable and made.group.has_equal_rewards]
        for group in equal:
            del self.made[group.issue.issue_id]
        self.dropped += equal

    @property
    def num_refills(self) -> int:
        """Issued in the place of others."""
        return max(0, self._num_issued - self._num_wanted)

    @property
    def num_lacking(self) -> int:
        """Groups in whose place nothing has been issued. One that failed is not replaced: its step is a smaller one."""
        return max(0, self._num_wanted - len(self.made) - len(self.failures))

    def lacking(self) -> str:
        """In words, that the step stays short."""
        return (
            f"step {self.step} trains fewer groups ({self.num_lacking} less): {len(self.dropped)} earned the same in "
            f"all their responses, and train.max_refills was reached after {self.num_refills}"
        )

    def complete(self) -> None:
        self.ended_s = now_s()
        self.is_complete.set()

    @property
    def in_order(self) -> list[Made]:
        """In the order of issue: what was quick to be sampled has no say in where it comes."""
        return [self.made[issue_id] for issue_id in sorted(self.made)]
