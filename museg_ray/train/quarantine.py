"""The responses that could not be scored: `quarantine.jsonl`, one line each, for whoever wants to know why."""

import json
from collections.abc import Sequence
from pathlib import Path

from museg_ray.types import ResponseGroup, RewardParts, Unscored


class Quarantine:
    """Keeps every unscored response with its text and reasons. The file is there once there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int, group: ResponseGroup, outcomes: Sequence[RewardParts | Unscored]) -> None:
        """Append the group's unscored responses, at once, so that a run that ends over them leaves them behind."""
        rows = [
            {
                "step": step,
                "query_id": group.query.query_id,
                "response_index": index,
                "weight_version": group.weight_version,
                "reasons": outcome.reasons,
                "text": outcome.text,
            }
            for index, outcome in enumerate(outcomes)
            if isinstance(outcome, Unscored)
        ]
        if rows:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
