"""Asks the policy held-out questions, greedily, and scores the answers; also with the videos swapped."""

import asyncio
import json
import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.data.fit import fit_to_file
from museg_ray.data.prompts import render_prompt
from museg_ray.errors import CheckpointError, QueryError, VideoError
from museg_ray.evaluation.metrics import GroundingAnswer, GroundingScores, grounding_scores
from museg_ray.files import whole_file
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.rewards.recipe import Recipe
from museg_ray.rollout.engine import Sampling
from museg_ray.rollout.pool import RolloutPool
from museg_ray.types import EVALUATION, GroundingQuery, Issue, RewardParts
from museg_ray.video.actor import ClipPool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of the held-out queries."""

    answered: list["Answered"]
    """In the order of the queries."""
    unreadable: list[QueryError]
    """Of the queries whose video cannot be read."""

    @property
    def answered_ids(self) -> set[str]:
        return {answered.query.query_id for answered in self.answered}

    def fitted(self, queries: Iterable[GroundingQuery]) -> list[GroundingQuery]:
        """The queries, with those of their truths that were cut."""
        truths = {answered.query.query_id: answered.query.segments for answered in self.answered}
        return [replace(query, segments=truths.get(query.query_id, query.segments)) for query in queries]

    def scores(self, query_ids: Collection[str]) -> GroundingScores:
        """Of the answers to these queries alone."""
        chosen = [answered for answered in self.answered if answered.query.query_id in query_ids]
        return grounding_scores(
            [GroundingAnswer(a.parts.predicted, a.query.segments, bool(a.parts.format)) for a in chosen]
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """One held-out query with the policy's greedy response."""

    query: GroundingQuery
    response: str
    parts: RewardParts
    file_s: float
    """How long the video file lasts, which cuts the truth."""

    def as_row(self) -> dict[str, object]:
        """The line of `evaluation/*.jsonl`."""
        return {
            "query_id": self.query.query_id,
            "video": self.query.video,
            "question": self.query.question,
            "duration_s": self.query.duration_s,
            "segments": self.query.segments,
            "predicted": self.parts.predicted,
            "response": self.response,
            "file_s": self.file_s,
            "iou": self.parts.global_match,
            "format": self.parts.format,
        }


def swap_videos(queries: Sequence[GroundingQuery]) -> list[GroundingQuery]:
    """The same questions and truths, each with another query's video of the same or the next duration.

    A policy that answers from the video must fall to the blind level here; one that keeps its score never looked.
    """
    order = sorted(range(len(queries)), key=lambda i: (queries[i].duration_s or 0.0, i))
    swapped = list(queries)
    for rank, index in enumerate(order):
        others = (queries[order[(rank + shift) % len(order)]] for shift in range(1, len(order)))
        other = next((query for query in others if query.video != queries[index].video), None)
        assert other is not None, "swapping needs at least two videos"
        swapped[index] = replace(queries[index], video=other.video)
    return swapped


async def evaluate(
    queries: Sequence[GroundingQuery],
    prompt: str,
    max_completion_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    clips: ClipPool,
    rollouts: RolloutPool,
    has_own_videos: bool = True,
) -> Evaluation:
    """One greedy response to each query, scored as in the paper, whatever the run trains on.

    Twice as many are under way as the actors sample at once, so that the clips of one half are prepared meanwhile. All
    of a large file at once would drive one another's clips out of the frame store before they are sampled.

    Args:
        has_own_videos: the truths are cut at the ends of the video files; not where videos are swapped.

    Raises:
        VideoError: no video can be read.
    """
    sampling = Sampling(group_size=1, temperature=0.0, max_completion_tokens=max_completion_tokens)
    recipe, weights = Recipe(RewardConfig()), RewardWeights()
    turns = asyncio.Semaphore(2 * rollouts.room)

    async def answer(issue: Issue) -> Answered | QueryError:
        async with turns:
            query = issue.query
            prompt_ids = chat_prompt_ids(tokenizer, render_prompt(prompt, query.question))
            try:
                clip = await clips.get(query.video)
                if has_own_videos:
                    query, _ = fit_to_file(query, clip.prepared.duration_s)
                try:
                    group = await rollouts.sample(issue, prompt_ids, clip, sampling)
                except VideoError:  # it left the store meanwhile, or the machine that has it: prepared once more
                    group = await rollouts.sample(issue, prompt_ids, await clips.get(query.video), sampling)
            except QueryError as error:
                return error
            text = group.responses[0].text
            return Answered(query, text, recipe.score(text, query, weights), clip.prepared.duration_s)

    results = await asyncio.gather(
        *(answer(Issue(index, query, EVALUATION, seed=0)) for index, query in enumerate(queries))
    )
    unreadable = [result for result in results if not isinstance(result, Answered)]
    if unreadable and len(unreadable) == len(results):
        raise VideoError(f"None of the {len(results)} held-out videos can be read. {unreadable[-1]}")
    return Evaluation([result for result in results if isinstance(result, Answered)], unreadable)


def write_answers(answered: Iterable[Answered], path: Path) -> None:
    """Write one JSON line an answer, whole or not at all; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(a.as_row()) + "\n" for a in answered)
        file.flush()
        os.fsync(file.fileno())


def read_answers(queries: Sequence[GroundingQuery], path: Path) -> Evaluation:
    """What `write_answers` wrote: the evaluation of these queries as it was made, without its unreadable videos.

    Raises:
        CheckpointError: the file is not there, is damaged, or answers other queries.
    """
    by_id = {query.query_id: query for query in queries}
    recipe, weights = Recipe(RewardConfig()), RewardWeights()
    answered = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = {"file_s": math.inf} | json.loads(line)  # runs from before the files cut the truths have none
            text, file_s = row["response"], row["file_s"]
            query, _ = fit_to_file(by_id[row["query_id"]], file_s)
            answer = Answered(query, text, recipe.score(text, query, weights), file_s)
            if json.loads(json.dumps(answer.as_row())) != row:
                raise ValueError(f"the answer to {query.query_id} is not about the same question, video and segments")
            answered.append(answer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The answers in {path} cannot be taken over ({type(error).__name__}: {error}). The run to be resumed gave "
            "them before it trained, and they cannot be given again: restore the file and data.heldout as they were, "
            "or start a new run."
        ) from None
    return Evaluation(answered, unreadable=[])
