"""What went wrong, for whoever wants to know why: responses that could not be scored and videos that could not be read
in `quarantine.jsonl`, one line each; the groups of an update that failed in `failed_update.jsonl`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from museg_ray.errors import VideoError
from museg_ray.files import whole_file
from museg_ray.types import GroundingQuery, ResponseGroup, RewardParts, ScoredGroup, Unscored


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

    def keep_update(self, step: int, groups: Sequence[ScoredGroup]) -> Path:
        """Write what the learner could not make an update of, one line a group, to `failed_update.jsonl`.

        Returns:
            The file's path. Its numbers may be `NaN` or `Infinity`, which Python's `json` reads.
        """
        path = self.path.with_name("failed_update.jsonl")
        with whole_file(path) as partial:
            partial.write_text("".join(json.dumps(_group_row(step, scored)) + "\n" for scored in groups), "utf-8")
        return path

    def _append(self, rows: Sequence[Mapping[str, object]]) -> None:
        if rows:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def _group_row(step: int, scored: ScoredGroup) -> dict[str, object]:
    group = scored.group
    responses = [
        {
            "text": response.text,
            "finished": response.finished,
            "reward": parts.total,
            "advantage": float(advantage),
            "token_ids": response.token_ids,
            "logprobs": response.logprobs.tolist(),
        }
        for response, parts, advantage in zip(group.responses, scored.rewards, scored.advantages, strict=True)
    ]
    return {
        "step": step,
        "query_id": group.query.query_id,
        "video": group.query.video,
        "clip_key": group.clip_key,
        "weight_version": group.weight_version,
        "prompt_ids": group.prompt_ids,
        "responses": responses,
    }
