"""A run's ledger as a table, to look whether every issue has its one end."""

from dataclasses import dataclass
from pathlib import Path

from museg_ray.append_log import Row, damaged_line, read_rows
from museg_ray.ledger.ledger import ISSUED, Outcome


@dataclass(slots=True)
class LedgerRow:
    """An issue and its end."""

    issue_id: int
    query_id: str
    video: str
    phase: str
    step: int
    issued_unix_s: float
    ended_unix_s: float | None = None
    outcome: Outcome | None = None
    """None: it has no end."""
    reason: str = ""
    weight_version: int | None = None
    """Weights that its group was begun with; None when there was no group."""


def read_ledger(path: Path) -> list[LedgerRow]:
    """Every issue of a run, in the order of issue; none where the file is not there.

    Raises:
        CheckpointError: the file is damaged.
    """
    issues: list[LedgerRow] = []
    for number, row in enumerate(read_rows(path), start=1):
        try:
            if row["event"] == ISSUED:
                issues.append(_begun(row, len(issues)))
            else:
                _end(issues[row["issue_id"]], row)
        except (LookupError, ValueError) as error:
            raise damaged_line(path, number, f"{type(error).__name__}: {error}") from None
    return issues


def _begun(row: Row, next_id: int) -> LedgerRow:
    if row["issue_id"] != next_id:
        raise ValueError(f"issue {row['issue_id']} came where {next_id} was next")
    return LedgerRow(next_id, row["query_id"], row["video"], row["phase"], row["step"], row["unix_s"])


def _end(issue: LedgerRow, row: Row) -> None:
    if issue.outcome is not None:
        raise ValueError(f"issue {issue.issue_id} has ended already")
    issue.outcome, issue.reason, issue.weight_version = Outcome(row["event"]), row["reason"], row["weight_version"]
    issue.ended_unix_s = row["unix_s"]
