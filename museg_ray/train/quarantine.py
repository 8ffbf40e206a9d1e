"""Responses that could not be scored and videos that could not be read: `quarantine.jsonl`, one line each, for whoever
wants to know why."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from museg_ray.errors import VideoError
from museg_ray.types import GroundingQuery, ResponseGroup, RewardParts, Unscored


class Quarantine:
    """Keeps every unscored response with its text and reasons, and every query whose video is unreadable with its
    fault. The file is there once there is one; rows are appended at once, so that a run that ends over them leaves them
    behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int, group: ResponseGroup, outcomes: Sequence[RewardParts | Unscored]) -> None:
        """Append the group's unscored responses."""
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
        self._append(rows)

    def add_video(self, step: int, query: GroundingQuery, error: VideoError) -> None:
        """Append a query that got no responses."""
        row = {"step": step, "query_id": query.query_id, "video": query.video, "fault": error.fault.value}
        self._append([row | {"reasons": [str(error)]}])

    def _append(self, rows: Sequence[Mapping[str, object]]) -> None:
        if rows:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
