"""Micro-batches: every token once with what belongs to it, on any number of ranks; and updates that do not depend on
how groups are packed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from museg_ray.algo.aggregation import token_weights
from museg_ray.config.schema import Config
from museg_ray.errors import LearnerError
from museg_ray.learner.batch import Batcher, MicroBatch
from museg_ray.learner.learner import Learner
from museg_ray.learner.rank import Rank
from museg_ray.metrics import names
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.qwen_vl import (
    VisionSpec,
    end_token_id,
    forbidden_token_ids,
    load_policy,
    load_tokenizer,
    load_vision_spec,
)
from museg_ray.types import Clip, GroundingQuery, Group, Issue, Response, RewardParts
from tests.learner.rank_processes import RankProcesses
from tests.learner.test_ranks import assert_same, joined, train
from tests.weights.weight_files import exported

StartLearner = Callable[..., Learner]
MakeGroup = Callable[..., Group]
CPU = torch.device("cpu")
CHUNK_TOKENS = 3
FORBIDDEN = 7
"""The one token of these groups that may not be sampled."""


@pytest.fixture(scope="module")
def spec(tiny_model_dir: Path) -> VisionSpec:
    return load_vision_spec(tiny_model_dir)


def clips_of(spec: VisionSpec) -> dict[str, Clip]:
    """Two of unlike lengths, so that their prompts are, too."""
    clips = {}
    for key, num_frames in (("a", 2), ("b", 6)):
        frames = np.full((num_frames, spec.size_multiple, spec.size_multiple, 3), num_frames, dtype=np.uint8)
        times_s = np.arange(num_frames, dtype=np.float32)
        clips[key] = Clip(key, f"{key}.mp4", frames, times_s, float(num_frames))
    return clips


def group_of(spec: VisionSpec, clip: Clip, completions: Sequence[Sequence[int]], number: int) -> Group:
    """Log-probs and advantages are all different, so that a mix-up shows."""
    query = GroundingQuery(f"test/{number}", clip.video, "it", ((0.0, 1.0),))
    prompt = (1, *[spec.video_token_id] * spec.num_video_tokens(video_grid(clip.frames, spec)), 2)
    responses = tuple(
        Response(tuple(ids), -(number * 100 + index * 10 + np.arange(len(ids), dtype=np.float32)), "", True)
        for index, ids in enumerate(completions)
    )
    rewards = (RewardParts(0, 0, 0, 0, 0, 0),) * len(completions)
    advantages = np.array([number + index / 10 for index in range(len(completions))], np.float32)
    issue = Issue(0, query, "only", 0)
    return Group(issue, clip.key, clip.duration_s, prompt, responses, 0, rewards, advantages)


def batcher_of(spec: VisionSpec, rank: Rank, pack_tokens: int, loss_mean: str = "sequence") -> Batcher:
    config = Config()
    config.model.dtype, config.algo.loss_mean = "float32", loss_mean
    config.learner.pack_tokens, config.learner.chunk_tokens = pack_tokens, CHUNK_TOKENS
    return Batcher(config, spec, rank, CPU, lambda ids: ids != FORBIDDEN)


TokenRow = tuple[float, ...]


def rows_of(batch: MicroBatch) -> Iterator[TokenRow]:
    """Of each token in the loss: id, rollout log-prob, advantage, weight."""
    is_in_loss = (batch.pack.targets != FORBIDDEN) & (not batch.is_filler)
    assert batch.kept.tolist() == is_in_loss.nonzero()[:, 0].tolist()
    columns = (batch.pack.targets[batch.kept], batch.rollout_logprobs, batch.advantages, batch.weights)
    yield from zip(*(column.tolist() for column in columns), strict=True)


completions_strategy = st.lists(st.lists(st.integers(3, 9), max_size=6), min_size=1, max_size=5)


@settings(max_examples=60)
@given(
    shapes=st.lists(st.tuples(st.sampled_from("ab"), completions_strategy), min_size=1, max_size=6),
    num_ranks=st.integers(1, 3),
    pack_tokens=st.sampled_from([11, 16, 30, 1000]),
    loss_mean=st.sampled_from(["sequence", "token", "constant"]),
)
def test_every_token_is_in_one_micro_batch_of_one_rank_with_what_belongs_to_it(
    spec: VisionSpec,
    shapes: list[tuple[str, list[list[int]]]],
    num_ranks: int,
    pack_tokens: int,
    loss_mean: str,
) -> None:
    clips = clips_of(spec)
    groups = [group_of(spec, clips[key], ids, number) for number, (key, ids) in enumerate(shapes)]
    num_tokens = [[sum(t != FORBIDDEN for t in r.token_ids) for r in each.responses] for each in groups]
    weights = token_weights(loss_mean, num_tokens, Config().rollout.max_completion_tokens)
    expected = [
        (token, logprob, float(each.advantages[index]), float(weights[number][index]))
        for number, each in enumerate(groups)
        for index, response in enumerate(each.responses)
        for token, logprob in zip(response.token_ids, response.logprobs.tolist(), strict=True)
        if token != FORBIDDEN
    ]
    found: list[TokenRow] = []
    counts = set()
    for index in range(num_ranks):
        batcher = batcher_of(spec, Rank(index, num_ranks), pack_tokens, loss_mean)
        keys = batcher.clip_keys(groups)
        batches = batcher.micro_batches(groups, {key: clips[key] for key in keys}, 0)  # needs no other clip
        counts.add(tuple(batch.num_chunks for batch in batches))
        assert {clip.key for batch in batches for clip in batch.clips} == keys
        for batch in batches:
            found += rows_of(batch)
            assert_own_responses(batch, groups)
            assert len(batch.pack.input_ids) <= pack_tokens
            assert batch.num_chunks >= len(batch.pack.targets) / CHUNK_TOKENS
            assert_own_videos(batcher, batch, spec)
    assert len(counts) == 1, "all ranks make as many passes, and call the output head as often in each"
    assert sorted(found) == sorted(expected)


def assert_own_responses(batch: MicroBatch, groups: Sequence[Group]) -> None:
    """Tokens of one number are all those of one response that are in the loss. A log-prob's hundreds tell the group,
    its tens the response."""
    assert not len(batch.responses) or batch.responses.max() < len(batch.responses)
    numbers = batch.responses.unique()
    of_number = [batch.rollout_logprobs[batch.responses == number].neg().tolist() for number in numbers]
    assert len({logprobs[0] // 10 for logprobs in of_number}) == len(of_number)
    for logprobs in of_number:
        group, index = divmod(int(logprobs[0] // 10), 10)
        response = groups[group].responses[index]
        in_loss = [t != FORBIDDEN for t in response.token_ids]
        assert logprobs == (-response.logprobs[in_loss]).tolist()


def assert_own_videos(batcher: Batcher, batch: MicroBatch, spec: VisionSpec) -> None:
    """Each span's clip is that of its prompt's number of placeholders, and its patches come in the same order."""
    videos = batcher.videos(batch)
    assert videos.patches is not None
    torch.testing.assert_close(videos.patches, torch.cat([patchify(clip.frames, spec) for clip in batch.clips]))
    grids = [video_grid(clip.frames, spec) for clip in batch.clips]
    assert [tuple(grid) for grid in videos.grids.tolist()] == grids
    assert [span.num_prompt - 2 for span in batch.pack.spans] == [spec.num_video_tokens(grid) for grid in grids]


def test_the_weights_of_an_update_add_up_to_one_over_all_ranks(spec: VisionSpec) -> None:
    clips = clips_of(spec)
    groups = [group_of(spec, clips[key], [[3, 4, 5], [6]], number) for number, key in enumerate("aba")]
    for loss_mean in ("sequence", "token"):
        batchers = [batcher_of(spec, Rank(index, 2), 11, loss_mean) for index in range(2)]
        batches = [batch for batcher in batchers for batch in batcher.micro_batches(groups, clips, 0)]
        assert sum(float(batch.weights.sum()) for batch in batches) == pytest.approx(1.0)


def test_a_rank_without_a_part_makes_a_pass_that_adds_nothing(spec: VisionSpec) -> None:
    clips = clips_of(spec)
    batcher = batcher_of(spec, Rank(1, 2), 1000)
    groups = [group_of(spec, clips["b"], [[3, 4], [5]], 0)]
    assert batcher.clip_keys(groups) == {"b"}
    (batch,) = batcher.micro_batches(groups, clips, 0)
    assert len(batch.pack.targets) == 1
    assert all(len(x) == 0 for x in (batch.kept, batch.advantages, batch.weights, batch.rollout_logprobs))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_broken_rollout_log_prob_names_the_query_that_has_it(spec: VisionSpec, value: float) -> None:
    clips = clips_of(spec)
    groups = [group_of(spec, clips["a"], [[3, FORBIDDEN], [5]], number) for number in range(3)]
    batcher = batcher_of(spec, Rank(), 1000)
    groups[0].responses[0].logprobs[1] = value  # of a token that is left out: nobody reads it
    assert len(batcher.micro_batches(groups, clips, 0)) == 1
    groups[1].responses[1].logprobs[0] = value
    with pytest.raises(LearnerError, match="query test/1 "):
        batcher.micro_batches(groups, clips, 0)


# Updates, by a whole learner.


@pytest.fixture
def learning(config: Config) -> Config:
    """All terms of the loss. Adam turns rounding in a gradient near 0 into a part of the rate, so it is small."""
    config.learner.learning_rate, config.learner.max_grad_norm = 1e-4, 0.5
    config.algo = replace(config.algo, beta=0.04, entropy_bonus=0.01, num_epochs=2, clip_low=0.02, loss_mean="token")
    return config


@pytest.fixture
def groups(make_group: MakeGroup) -> list[Group]:
    return [
        make_group([[40, 41, 42, 43], [50, 51, 52], []], [1.0, -0.5, -0.5]),
        make_group([[60], [61, 62]], [-1.0, 1.0]),
        make_group([[70] * 9, [71] * 5, [72, 73], [74] * 6], [0.3, -0.3, 0.1, -0.1]),
    ]


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return exported(learner)


def updated(learner: Learner, groups: Sequence[Group], clip: Clip) -> tuple[list[dict[str, float]], Any]:
    metrics = [learner.update(groups, {clip.key: clip}, step) for step in (1, 2)]
    return metrics, weights_of(learner)


@pytest.mark.parametrize("change", ["pack_tokens", "order", "dense", "chunk_tokens", "checkpointing", "zero 3"])
def test_an_update_does_not_depend_on_how_it_is_computed(
    learning: Config,
    start_learner: StartLearner,
    groups: list[Group],
    clip: Clip,
    change: str,
) -> None:
    assert_same_update(learning, start_learner, groups, clip, change)


@pytest.mark.parametrize("level", ["sequence", "geometric"])
def test_an_update_by_response_does_not_depend_on_how_its_groups_are_packed(
    learning: Config, start_learner: StartLearner, groups: list[Group], clip: Clip, level: str
) -> None:
    """In the second step the learner has moved on from the weights of the rollout log-probs."""
    learning.algo = replace(
        learning.algo,
        surrogate="gspo",
        loss_mean="sequence",
        clip_low=0.002,
        clip_high=0.002,
        correction="truncate",
        correction_level=level,
        correction_limit=1.001,
    )
    metrics = assert_same_update(learning, start_learner, groups, clip, "pack_tokens")
    assert all(0 < metrics[name] < 1 for name in (names.LEARNER_CORRECTED_SHARE, names.LEARNER_CLIPPED_SHARE))


def assert_same_update(
    learning: Config, start_learner: StartLearner, groups: list[Group], clip: Clip, change: str
) -> dict[str, float]:
    """Metrics of the second step."""
    expected = updated(start_learner(learning), groups, clip)
    learner = learning.learner
    if change == "order":
        groups = [groups[2], groups[0], groups[1]]
    elif change == "pack_tokens":
        learner.pack_tokens = len(groups[0].prompt_ids) + 10
    elif change == "dense":
        learner.attention = "dense"
    elif change == "chunk_tokens":
        learner.chunk_tokens = 3
    else:
        learner.gradient_checkpointing = True
        learner.zero_stage = 3 if change == "zero 3" else 2
    found = updated(start_learner(learning), groups, clip)
    assert_same(found, expected, tolerance=2e-5)
    passes = [metrics[names.LEARNER_SEQUENCES] for (metrics,) in zip(found[0], strict=True)]
    assert passes == ([10.0, 10.0] if change == "pack_tokens" else [2.0, 2.0])
    return found[0][1]


@pytest.fixture(scope="module")
def tokens(tiny_model_dir: Path) -> tuple[list[int], list[int]]:
    """Allowed and forbidden ids of the tiny model."""
    tokenizer = load_tokenizer(tiny_model_dir)
    vocab_size = load_policy(tiny_model_dir, torch.float32).config.text_config.vocab_size
    forbidden = forbidden_token_ids(tokenizer, vocab_size)
    assert len(tokenizer) < vocab_size and end_token_id(tokenizer) not in forbidden
    return sorted(set(range(vocab_size)) - set(forbidden)), forbidden


@pytest.mark.parametrize("seed", range(2))
def test_no_mixture_of_tokens_ends_a_run_and_those_that_may_not_be_sampled_are_left_out(
    config: Config,
    start_learner: StartLearner,
    make_group: MakeGroup,
    tokens: tuple[list[int], list[int]],
    clip: Clip,
    seed: int,
) -> None:
    """In the first update every ratio is 1, so the loss says which responses have tokens in it."""
    allowed, forbidden = tokens
    config.learner.learning_rate = 1e-7
    learner, rng = start_learner(config), np.random.default_rng(seed)
    for step in range(1, 7):
        lengths = rng.integers(0, 6, rng.integers(2, 6))
        completions = [
            [int(rng.choice(forbidden if rng.random() < 0.6 else allowed)) for _ in range(length)] for length in lengths
        ]
        advantages = rng.normal(size=len(lengths))
        group = make_group(completions, advantages)
        for response in group.responses:
            is_out = np.isin(response.token_ids, forbidden)
            response.logprobs[is_out] = rng.choice([0.0, -1e30, np.nan], is_out.sum())  # nobody reads it
        metrics = learner.update([group], {clip.key: clip}, step)
        assert all(np.isfinite(list(metrics.values()))) and metrics[names.LEARNER_UPDATES] == 1
        has_loss = [any(token in allowed for token in completion) for completion in completions]
        assert metrics[names.LEARNER_LOSS] == pytest.approx(-(advantages * has_loss).mean(), abs=1e-5)
        assert metrics[names.PARITY_GAP_MAX] < 1e-2  # the weights have hardly moved
    assert all(bool(tensor.isfinite().all()) for tensor in weights_of(learner).values())


def test_tokens_that_may_not_be_sampled_at_the_end_of_a_response_change_no_update(
    learning: Config,
    start_learner: StartLearner,
    make_group: MakeGroup,
    tokens: tuple[list[int], list[int]],
    clip: Clip,
) -> None:
    plain, forbidden = [[40, 41, 42], [50, 51], []], tokens[1]
    advantages = [1.0, -0.5, -0.5]
    with_tail = [[*completion, *forbidden[:3], forbidden[-1]] for completion in plain]
    expected = updated(start_learner(learning), [make_group(plain, advantages)], clip)
    found = updated(start_learner(learning), [make_group(with_tail, advantages)], clip)
    assert_same(found, expected, tolerance=2e-5)


@pytest.mark.parametrize("reference", ["device", "lora_off"])
def test_a_learner_with_adapters_resumes_bit_for_bit(
    learning: Config,
    start_learner: StartLearner,
    groups: list[Group],
    clip: Clip,
    tmp_path: Path,
    tiny_model_dir: Path,
    reference: str,
) -> None:
    learning.learner.lora.rank, learning.learner.reference = 4, reference
    learning.learner.train_vision = reference == "device"
    learning.learner.train_merger = learning.learner.train_vision
    clips = {clip.key: clip}
    learner = start_learner(learning)
    for step in (1, 2):
        learner.update(groups, clips, step)
    learner.snapshot().write(tmp_path)
    resumed = start_learner(learning, tiny_model_dir, tmp_path)
    for step in (3, 4):
        assert resumed.update(groups, clips, step) == learner.update(groups, clips, step)
    expected, found = exported(learner), exported(resumed)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("setting", ["trained", "frozen", "lora"])
def test_two_ranks_with_groups_split_over_both_make_the_updates_of_one(
    two_ranks: RankProcesses,
    learning: Config,
    tiny_model_dir: Path,
    groups: list[Group],
    clip: Clip,
    setting: str,
) -> None:
    """With all that recomputes in the backward pass, where ZeRO 3 gathers the weights once more."""
    learner = learning.learner
    learner.train_vision = setting == "trained"
    if setting == "lora":
        learner.lora.rank, learner.reference, learner.train_merger = 4, "lora_off", False
    steps, clips = [groups, groups[2:]], {clip.key: clip}
    learner.zero_stage = 0
    alone = joined([train(Rank(), learning, tiny_model_dir, steps, clips)])
    learner.zero_stage, learner.gradient_checkpointing, learner.chunk_tokens = 3, True, 3
    learner.pack_tokens = len(groups[0].prompt_ids) + 10
    together = joined(two_ranks.run(train, learning, tiny_model_dir, steps, clips))
    assert_same(together, alone, tolerance=2e-5)
