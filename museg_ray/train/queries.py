"""The queries of a run, read and checked before anything starts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from museg_ray.config.schema import Config
from museg_ray.data.annotations import check_ids, read_annotations
from museg_ray.data.prompts import render_prompt
from museg_ray.data.sampler import build_samplers
from museg_ray.data.store import load_queries
from museg_ray.demo.corpus import ensure_corpus
from museg_ray.errors import ConfigError, DataError
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.types import GroundingQuery

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class RunQueries:
    train: dict[str, list[GroundingQuery]]
    """By annotation file, as the phases name it: `Config.train_file`."""
    heldout: list[GroundingQuery]

    @property
    def all_train(self) -> list[GroundingQuery]:
        return [*chain(*self.train.values())]

    def __iter__(self) -> Iterator[GroundingQuery]:
        return chain(self.all_train, self.heldout)


def read_run_queries(config: Config, progress: Progress) -> RunQueries:
    """Train and held-out queries. Renders the synthetic corpus where it is asked for.

    Args:
        progress: called with (videos rendered, videos in all).

    Raises:
        ConfigError: no annotation file is set.
        DataError: an annotation file or a row of it, or a phase whose queries cannot be drawn.
    """
    synthetic, train = config.data.synthetic, dict[str, list[GroundingQuery]]()
    corpus = ensure_corpus(synthetic, progress) if synthetic.num_train_videos else None
    for phase in config.train.phases:
        path = config.train_file(phase)
        if phase.steps and path not in train:
            rendered = None if corpus is None or phase.train else corpus.train
            train[path] = read_annotations(rendered) if rendered else _read(config, "data.train", path)
    check_ids(train)
    build_samplers(
        config, train, config.run.seed
    )  # tried now: queries that a late phase lacks would end the run after hours
    heldout = read_annotations(corpus.heldout) if corpus else _read(config, "data.heldout", config.data.heldout)
    return RunQueries(train, _spread(heldout, config.evaluation.num_queries))


def check_heldout(queries: RunQueries) -> None:
    """Make sure before a long run that its end can be measured.

    Raises:
        DataError: there is nothing to swap a held-out video with.
    """
    if len({query.video for query in queries.heldout}) < 2:
        raise DataError(
            "All held-out questions are about one video. Asking them of another video is how a run tells whether the "
            "model looks: put questions about at least two into data.heldout."
        )


def overlong(config: Config, queries: RunQueries, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Warnings of queries whose text leaves no room for a video and an answer: they will be set aside one by one.

    Raises:
        DataError: no query of a file has room.
    """
    asked = [
        (config.train_file(phase), phase.prompt, config.rollout.max_completion_tokens) for phase in config.train.phases
    ]
    lists = [(path, queries.train[path], prompt, room) for path, prompt, room in asked if path in queries.train]
    lists.append(("data.heldout", queries.heldout, config.evaluation_prompt, config.evaluation.max_completion_tokens))
    warnings = []
    for path, of_file, prompt, room in lists:
        lengths = [len(chat_prompt_ids(tokenizer, render_prompt(prompt, query.question))) for query in of_file]
        limit = config.model.max_tokens
        long = [query for query, length in zip(of_file, lengths, strict=True) if length + room > limit]
        if not long:
            continue
        found = (
            f"{len(long)} of {len(of_file)} questions of {path or 'the corpus'} have no room: the longest has "
            f"{max(lengths)} tokens with its prompt, its answer may have {room}, and model.max_tokens is {limit}; "
            f"the first is {long[0].query_id}"
        )
        if len(long) == len(of_file):
            raise DataError(f"{found}. Raise model.max_tokens or shorten the prompt.")
        warnings.append(f"{found}. They are set aside")
    return warnings


def _read(config: Config, key: str, path: str) -> list[GroundingQuery]:
    if not path:
        raise ConfigError(f"{key} is empty; set it to an annotation file (.jsonl, or .parquet of `museg data import`).")
    return load_queries(Path(path), config.data.video_root or None)


def _spread(queries: Sequence[GroundingQuery], count: int) -> list[GroundingQuery]:
    """`count` queries evenly spread over the file; all of them for 0 or too large a count."""
    if not 0 < count < len(queries):
        return list(queries)
    return [queries[i * len(queries) // count] for i in range(count)]
