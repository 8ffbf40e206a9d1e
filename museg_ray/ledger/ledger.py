"""What became of every issue: `ledger.jsonl`, one line when it is issued and one when it ends."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from museg_ray.append_log import AppendLog, Row, Watermark, damaged_line
from museg_ray.types import Issue

ISSUED = "issued"
_BEGINNING = re.compile(rb'\{"event": "([a-z]+)", "issue_id": (\d+),')
"""Of every line. To know what is open, the rest of it need not be read: that makes the difference between seconds and
minutes after a million issues."""


class Outcome(StrEnum):
    """How an issue ends."""

    TRAINED = "trained"
    """The learner updated on its group."""
    FILTERED = "filtered"
    """Its group was left out of the update; the reason is written beside it."""
    FAILED = "failed"
    """No group came of it; the reason is written beside it."""


@dataclass(frozen=True, slots=True)
class OpenIssue:
    """An issue without an end, as the ledger has it."""

    issue_id: int
    query_id: str
    video: str
    phase: str
    step: int

    @classmethod
    def of(cls, row: Row) -> "OpenIssue":
        """As it was issued."""
        return cls(row["issue_id"], row["query_id"], row["video"], row["phase"], row["step"])


class Ledger(AppendLog):
    """Every issue from its draw to its end. In memory are the open ones alone: the millionth costs what the first did.

    Invariant: an issue ends exactly once. Twice would count a group's gradient twice, never would lose a query
    without a trace; both break resume and every audit that sums the rows.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ResourceError: the file cannot be read or written.
        """
        super().__init__(path)
        self._issues: _Issues | None = None

    @property
    def num_issues(self) -> int:
        """The id of the next one."""
        return self._read().num

    @property
    def open_issues(self) -> tuple[OpenIssue, ...]:
        """Without an end, in the order of issue; none after a run that ended well."""
        return tuple(self._read().open.values())

    def issue(self, issues: Sequence[Issue]) -> None:
        """Open the next issues, in the order of their ids.

        Raises:
            ResourceError: disk full and the like; none of them is open.
        """
        known, opened, rows = self._read(), dict[int, OpenIssue](), list[Row]()
        for next_id, issue in enumerate(issues, start=known.num):
            assert issue.issue_id == next_id, f"issue {issue.issue_id} came where {next_id} was next"
            query = issue.query
            opened[next_id] = OpenIssue(next_id, query.query_id, query.video, issue.phase, issue.step)
            rows.append({"event": ISSUED, **asdict(opened[next_id]), "seed": issue.seed, "unix_s": time.time()})
        self.append(rows)
        known.open |= opened
        known.num += len(opened)

    def end(self, issue_id: int, outcome: Outcome, reason: str = "", weight_version: int | None = None) -> None:
        """End an issue.

        Args:
            issue_id: of an open one.
            outcome: trained, or filtered or failed, which need their reason.
            reason: in words.
            weight_version: weights that the group was begun with; None when there was none.

        Raises:
            ResourceError: disk full and the like; it is still open.
        """
        known = self._read()
        assert issue_id in known.open, f"issue {issue_id} was never issued, or has ended already"
        assert reason or outcome is Outcome.TRAINED, f"issue {issue_id} {outcome} without a reason"
        row = {"event": outcome.value, "issue_id": issue_id, "reason": reason, "weight_version": weight_version}
        self.append([row | {"unix_s": time.time()}])
        del known.open[issue_id]

    def rewind(self, mark: Watermark) -> None:
        """Drop what came after `mark`: what has ended since is open again.

        Raises:
            CheckpointError: as `check`.
        """
        super().rewind(mark)
        self._issues = None

    def _read(self) -> "_Issues":
        """Once it is asked for: a run that goes on takes the file back first, and what a failing machine left behind
        the mark may be anything.

        Raises:
            CheckpointError: a line is damaged.
        """
        if self._issues is None:
            self._issues = _read_issues(self)
        return self._issues


@dataclass(slots=True)
class _Issues:
    num: int
    open: dict[int, OpenIssue]
    """By id, in the order of issue."""


def _read_issues(log: AppendLog) -> _Issues:
    num, lines = 0, dict[int, bytes]()  # in which the open ones were issued
    for number, line in enumerate(log.lines(), start=1):
        match = _BEGINNING.match(line)
        if match is None:
            raise damaged_line(log.path, number, "it is no event of an issue")
        event, issue_id = match[1].decode(), int(match[2])
        if event == ISSUED:
            fits = issue_id == num
            lines[issue_id] = line
            num += 1
        else:
            fits = lines.pop(issue_id, None) is not None
        if not fits:
            raise damaged_line(log.path, number, f"issue {issue_id} cannot be {event} there")
    return _Issues(num, {issue_id: OpenIssue.of(json.loads(line)) for issue_id, line in lines.items()})
