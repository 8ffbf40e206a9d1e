"""What went wrong, for whoever wants to know why: responses that could not be scored and queries that got no group in
`quarantine.jsonl`, one line each; the groups of an update that failed in `failed_update.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path

from museg_ray.append_log import AppendLog
from museg_ray.errors import QueryError
from museg_ray.files import whole_file
from museg_ray.types import Group, Issue, Unscored


class Quarantine(AppendLog):
    """Keeps every unscored response with its text and reasons, and every query without a group with its fault. Rows
    come with their step, before its update, or when the run fails: a run that ends over them leaves them behind."""

    def add(self, group: Group) -> None:
        """Append the group's unscored responses."""
        about = {"step": group.issue.step, "query_id": group.query.query_id, "issue_id": group.issue.issue_id}
        self.append(
            {
                **about,
                "response_index": index,
                "weight_version": group.weight_version,
                "reasons": outcome.reasons,
                "text": outcome.text,
            }
            for index, outcome in enumerate(group.outcomes)
            if isinstance(outcome, Unscored)
        )

    def add_query(self, issue: Issue, error: QueryError) -> None:
        """Append a query that got no responses."""
        query = issue.query
        about = {"step": issue.step, "query_id": query.query_id, "issue_id": issue.issue_id, "video": query.video}
        self.append([{**about, "fault": str(error.fault), "reasons": [str(error)]}])

    def keep_update(self, step: int, groups: Sequence[Group]) -> Path:
        """Write what the learner could not make an update of, one line a group, to `failed_update.jsonl`.

        Returns:
            The file's path. Its numbers may be `NaN` or `Infinity`, which Python's `json` reads.
        """
        path = self.path.with_name("failed_update.jsonl")
        with whole_file(path) as partial:
            partial.write_text("".join(json.dumps(_group_row(step, group)) + "\n" for group in groups), "utf-8")
        return path


def _group_row(step: int, group: Group) -> dict[str, object]:
    responses = [
        {
            "text": response.text,
            "finished": response.finished,
            "reward": parts.total,
            "advantage": float(advantage),
            "token_ids": response.token_ids,
            "logprobs": response.logprobs.tolist(),
        }
        for response, parts, advantage in zip(group.responses, group.rewards, group.advantages, strict=True)
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
