"""Held-out questions over parts that only answer."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from museg_ray.errors import CheckpointError, VideoError, VideoFault
from museg_ray.evaluation.runner import Evaluation, evaluate, read_answers, swap_videos, write_answers
from museg_ray.model.qwen_vl import load_tokenizer
from museg_ray.types import GroundingQuery, Group, Issue, Response
from museg_ray.video.prepare import PreparedClip

QUERIES = [GroundingQuery(f"q/{i}", f"{i}.mp4", "it happens", ((1.0, 2.0),), 12.0) for i in range(4)]
RIGHT, WRONG = "<think>1 to 2</think><answer>1-2</answer>", "<think>5 to 6</think><answer>5-6</answer>"


class Answering:
    """Stands for clips and rollouts; cannot read `unreadable`, loses `lost` once, is right about all but `1.mp4`."""

    def __init__(self, unreadable: set[str], lost: set[str], file_s: float = 12.0) -> None:
        self.unreadable, self.lost, self.file_s = unreadable, lost, file_s
        self.room = 1
        self.num_under_way = self.most_under_way = 0

    async def get(self, video: str) -> Any:
        if video in self.unreadable:
            raise VideoError(f"{video} is broken", VideoFault.CORRUPT)
        self.num_under_way += 1
        self.most_under_way = max(self.most_under_way, self.num_under_way)
        await asyncio.sleep(0)
        return SimpleNamespace(prepared=PreparedClip(video, video, (2, 28, 28, 3), self.file_s, False))

    async def sample(self, issue: Issue, prompt_ids: Any, clip: Any, sampling: Any) -> Group:
        if (video := issue.query.video) in self.lost:
            self.lost.remove(video)
            raise VideoError("its machine is gone", VideoFault.UNREACHABLE)
        await asyncio.sleep(0)
        self.num_under_way -= 1
        text = WRONG if video == "1.mp4" else RIGHT
        return Group(issue, video, 12.0, (1,), (Response((1,), np.zeros(1, np.float32), text, True),), 0)


def ask(
    model_dir: Path, unreadable: set[str], lost: set[str], file_s: float = 12.0, has_own_videos: bool = True
) -> Evaluation:
    parts: Any = Answering(unreadable, lost, file_s)
    tokenizer = load_tokenizer(model_dir)
    return asyncio.run(evaluate(QUERIES, "{question}", 8, tokenizer, parts, parts, has_own_videos))


def test_an_unreadable_video_is_told_and_not_scored_as_a_wrong_answer(tiny_model_dir: Path) -> None:
    found = ask(tiny_model_dir, {"3.mp4"}, set())
    assert found.answered_ids == {"q/0", "q/1", "q/2"}
    assert [error.fault for error in found.unreadable] == [VideoFault.CORRUPT]


def test_no_more_clips_are_prepared_than_will_be_sampled_soon(tiny_model_dir: Path) -> None:
    parts: Any = Answering(set(), set())
    queries = [replace(QUERIES[0], query_id=f"q/{i}", video=f"{i}.mp4") for i in range(50)]
    found = asyncio.run(evaluate(queries, "{question}", 8, load_tokenizer(tiny_model_dir), parts, parts))
    assert [answered.query.query_id for answered in found.answered] == [query.query_id for query in queries]
    assert parts.most_under_way == 2


def test_scores_are_of_the_queries_that_are_asked_for(tiny_model_dir: Path) -> None:
    found = ask(tiny_model_dir, set(), set())
    assert found.scores({"q/0", "q/2"}).miou == pytest.approx(1.0)
    assert found.scores({"q/0", "q/1"}).miou == pytest.approx(0.5)


def test_a_clip_that_is_gone_is_prepared_once_more(tiny_model_dir: Path) -> None:
    assert len(ask(tiny_model_dir, set(), {"0.mp4", "2.mp4"}).answered) == 4


def test_truths_are_cut_at_the_end_of_their_files_and_read_back_so(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = ask(tiny_model_dir, set(), set(), file_s=1.5)
    assert {answered.query.segments for answered in found.answered} == {((1.0, 1.5),)}
    assert {query.segments for query in found.fitted(QUERIES)} == {((1.0, 1.5),)}
    write_answers(found.answered, tmp_path / "before.jsonl")
    assert read_answers(QUERIES, tmp_path / "before.jsonl").answered == found.answered


def test_a_truth_that_its_file_does_not_have_is_no_wrong_answer(tiny_model_dir: Path) -> None:
    with pytest.raises(VideoError, match=r"None of the 4 held-out .*beyond_file"):
        ask(tiny_model_dir, set(), set(), file_s=0.9)
    swapped = ask(tiny_model_dir, set(), set(), file_s=0.9, has_own_videos=False)
    assert [answered.query for answered in swapped.answered] == QUERIES


def test_without_a_readable_video_there_is_nothing_to_score(tiny_model_dir: Path) -> None:
    with pytest.raises(VideoError, match="None of the 4 held-out videos can be read"):
        ask(tiny_model_dir, {query.video for query in QUERIES}, set())


def test_every_question_is_swapped_to_another_video() -> None:
    swapped = swap_videos(QUERIES)
    assert [query.query_id for query in swapped] == [query.query_id for query in QUERIES]
    assert all(ours.video != theirs.video for ours, theirs in zip(QUERIES, swapped, strict=True))


def test_answers_that_were_written_are_read_back_as_they_were(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = ask(tiny_model_dir, {"3.mp4"}, set())
    write_answers(found.answered, tmp_path / "before.jsonl")
    assert read_answers(QUERIES, tmp_path / "before.jsonl").answered == found.answered


@pytest.mark.parametrize("change", ["lost", "torn", "other question", "other truth", "other response", "other query"])
def test_answers_that_are_not_those_of_the_queries_are_refused(
    change: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "before.jsonl"
    write_answers(ask(tiny_model_dir, set(), set()).answered, path)
    text, queries = path.read_text(), list(QUERIES)
    if change == "lost":
        path.unlink()
    elif change == "torn":
        path.write_text(text[:-9])
    elif change == "other question":
        queries[0] = replace(queries[0], question="it ends")
    elif change == "other truth":
        queries[0] = replace(queries[0], segments=((1.0, 3.0),))
    elif change == "other response":
        path.write_text(text.replace("<answer>5-6", "<answer>4-6"))
    else:
        del queries[0]
    with pytest.raises(CheckpointError, match=r"before\.jsonl cannot be taken over"):
        read_answers(queries, path)
