"""One real vLLM engine, for the whole file, against Hugging Face."""

import asyncio
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from museg_ray.bench.naive_engine import NaiveClient
from museg_ray.config.schema import Config
from museg_ray.errors import RolloutError, UnfitQueryError, WeightSyncError
from museg_ray.model.patchify import video_grid
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.model.qwen_vl import load_tokenizer, load_vision_spec
from museg_ray.rollout.engine import RolloutEngine, Sampling
from museg_ray.rollout.vllm_setup import clip_cache_bytes
from museg_ray.types import Clip, GroundingQuery, Group, Issue
from museg_ray.weights.layout import VISION, Part, part_of
from tests.rollout.one_engine import SAMPLING, Rollout, Weights, assert_same
from tests.weights.weight_files import weights_file

GREEDY = Sampling(group_size=1, temperature=0.0, max_completion_tokens=8)
LARGE_CLIP_TOKENS = 464
"""Of the 512 of the test model: the engine process's cache of pixels holds one such clip, not two."""
EMBEDDING = "model.language_model.embed_tokens.weight"


def test_group_carries_the_expanded_prompt_and_a_logprob_for_each_token(
    rollout: Rollout, weights: Weights, clip: Clip, prompt_ids: list[int], reference_of: Callable[..., Any]
) -> None:
    reference = reference_of(weights, clip)
    group = rollout.sample(clip)
    at = prompt_ids.index(reference.video_token_id)
    expanded = [*prompt_ids[:at], *[reference.video_token_id] * reference.num_video_tokens, *prompt_ids[at + 1 :]]
    assert list(group.prompt_ids) == expanded
    assert len(group.responses) == SAMPLING.group_size
    for response in group.responses:
        assert len(response.logprobs) == len(response.token_ids) <= SAMPLING.max_completion_tokens
        assert response.finished or len(response.token_ids) == SAMPLING.max_completion_tokens


@pytest.mark.parametrize("duration_s", [6.0, 12.0, 19.2])
def test_logprobs_agree_with_hugging_face_at_any_frame_rate(
    rollout: Rollout,
    weights: Weights,
    clip: Clip,
    forbidden_ids: list[int],
    reference_of: Callable[..., Any],
    duration_s: float,
) -> None:
    clip = replace(clip, key=f"lasts {duration_s} s", duration_s=duration_s)
    reference = reference_of(weights, clip)
    group = rollout.sample(clip)
    for response in group.responses:
        expected = reference.logprobs(group.prompt_ids, response.token_ids, forbidden_ids, SAMPLING.temperature)
        np.testing.assert_allclose(response.logprobs, expected, atol=1e-5, rtol=0)


def test_greedy_answer_and_its_logprobs_at_temperature_one_are_those_of_hugging_face(
    rollout: Rollout, weights: Weights, clip: Clip, forbidden_ids: list[int], reference_of: Callable[..., Any]
) -> None:
    reference = reference_of(weights, clip)
    group = rollout.sample(clip, GREEDY)
    token_ids = group.responses[0].token_ids
    assert token_ids == reference.greedy(group.prompt_ids, forbidden_ids, GREEDY.max_completion_tokens)
    expected = reference.logprobs(group.prompt_ids, token_ids, forbidden_ids, temperature=1.0)
    np.testing.assert_allclose(group.responses[0].logprobs, expected, atol=1e-5, rtol=0)


def test_same_seed_gives_the_same_group_and_another_seed_another(rollout: Rollout, clip: Clip) -> None:
    first, again, other = (rollout.sample(clip, seed=seed) for seed in (7, 7, 8))
    tokens = [[response.token_ids for response in group.responses] for group in (first, again, other)]
    assert tokens[0] == tokens[1]
    assert not set(tokens[0]) & set(tokens[2])


def test_seeded_groups_that_do_not_fit_into_one_step_are_sampled(rollout: Rollout, clip: Clip) -> None:
    sampling = Sampling(group_size=32, temperature=1.0, max_completion_tokens=8)
    requests = [(replace(clip, key=f"copy {seed}"), sampling, seed) for seed in range(4)]
    groups = rollout.sample_many(requests)  # 128 sequences for 32 places, and more prompt tokens than a step takes
    assert [len(group.responses) for group in groups] == [32] * 4
    assert len({response.token_ids for group in groups for response in group.responses}) == 128


def test_forbidden_tokens_are_not_sampled_even_when_the_weights_want_them(
    rollout: Rollout,
    weights: Weights,
    clip: Clip,
    forbidden_ids: list[int],
    reference_of: Callable[..., Any],
) -> None:
    prompt = rollout.sample(clip, GREEDY).prompt_ids
    hidden = reference_of(weights, clip).forward(prompt, [])[0][-1]  # [H]
    video_id = reference_of(weights, clip).video_token_id
    wanting = {**weights, EMBEDDING: weights[EMBEDDING].clone()}
    wanting[EMBEDDING][video_id] = hidden * 50 / hidden.square().sum()
    assert reference_of(wanting, clip).forward(prompt, [])[1][-1].softmax(-1)[video_id] > 0.99

    rollout.push(wanting)
    group = rollout.sample(clip)
    sampled = {token for response in group.responses for token in response.token_ids}
    assert sampled and not sampled & set(forbidden_ids)
    reference = reference_of(wanting, clip)
    for response in group.responses:
        expected = reference.logprobs(group.prompt_ids, response.token_ids, forbidden_ids, SAMPLING.temperature)
        np.testing.assert_allclose(response.logprobs, expected, atol=1e-5, rtol=0)


def test_pushed_weights_reach_every_layer_and_tag_the_groups(
    rollout: Rollout,
    noisy_weights: Weights,
    clip: Clip,
    forbidden_ids: list[int],
    reference_of: Callable[..., Any],
) -> None:
    before = rollout.sample(clip)  # fills the caches with keys, values and video features of the old weights
    version = rollout.push(noisy_weights)
    group = rollout.sample(clip)
    assert version == rollout.engine.version == group.weight_version == before.weight_version + 1
    reference = reference_of(noisy_weights, clip)
    for response in group.responses:
        expected = reference.logprobs(group.prompt_ids, response.token_ids, forbidden_ids, SAMPLING.temperature)
        np.testing.assert_allclose(response.logprobs, expected, atol=1e-5, rtol=0)


# vLLM joins q, k and v into one layer, and would fill the part that is missing with what lies in memory.
@pytest.mark.parametrize("lost", ["norm.weight", "layers.1.self_attn.k_proj.weight"])
def test_engine_refuses_to_sample_after_an_incomplete_push_and_recovers_with_the_next(
    rollout: Rollout, weights: Weights, noisy_weights: Weights, clip: Clip, lost: str
) -> None:
    before = rollout.sample(clip)
    lacking = {name: tensor for name, tensor in noisy_weights.items() if name != f"model.language_model.{lost}"}
    with pytest.raises(WeightSyncError, match=rf"lacks 1 of .*language_model\.{re.escape(lost)}"):
        rollout.push(lacking)
    with pytest.raises(WeightSyncError, match="push new weights first"):
        rollout.sample(clip)
    rollout.push(weights)
    after = rollout.sample(clip)
    assert [r.token_ids for r in after.responses] == [r.token_ids for r in before.responses]


def test_push_without_vision_weights_that_are_not_said_to_be_frozen_is_refused(
    rollout: Rollout, noisy_weights: Weights
) -> None:
    sent = {name: tensor for name, tensor in noisy_weights.items() if part_of(name) is Part.LANGUAGE}
    version = rollout.engine.version + 1
    with weights_file(sent, version) as file, pytest.raises(WeightSyncError, match=r"lacks \d+ of .*visual"):
        rollout.run(rollout.engine.update_weights(version, file))


def test_frozen_vision_stays_and_so_do_the_features_of_the_clips(
    rollout: Rollout, weights: Weights, noisy_weights: Weights, clip: Clip
) -> None:
    expected = after_full_push(rollout, weights, noisy_weights, {Part.LANGUAGE}, clip)
    rollout.push(weights)
    seen = rollout.num_tower_runs
    before = rollout.sample(clip)
    rollout.push(noisy_weights, frozen=VISION)
    group = rollout.sample(clip)
    assert rollout.num_tower_runs == seen + 1, "one pass for two versions of the weights"
    assert_same(group, expected, atol=1e-5)
    assert [r.token_ids for r in group.responses] != [r.token_ids for r in before.responses]
    again = rollout.sample(replace(clip, key="seen by the frozen tower after the push"))
    assert rollout.num_tower_runs == seen + 2
    assert_same(again, group, atol=0)


def test_merger_that_is_trained_behind_a_frozen_tower_renews_the_features(
    rollout: Rollout, weights: Weights, noisy_weights: Weights, clip: Clip
) -> None:
    unseen = replace(clip, key="not seen by an older merger")
    expected = after_full_push(rollout, weights, noisy_weights, {Part.LANGUAGE, Part.MERGER}, unseen)
    rollout.push(weights)
    seen = replace(clip, key="seen by an older merger")
    rollout.sample(seen)
    rollout.push(noisy_weights, frozen=frozenset({Part.TOWER}))
    assert_same(rollout.sample(seen), expected, atol=1e-5)


def after_full_push(
    rollout: Rollout, weights: Weights, noisy_weights: Weights, trained: set[Part], clip: Clip
) -> Group:
    """A group under the noisy weights of the trained parts and the plain ones of all others, every one of them sent."""
    pushed = {name: noisy_weights[name] if part_of(name) in trained else weights[name] for name in weights}
    rollout.push(pushed)
    return rollout.sample(clip)


def test_push_of_a_version_that_is_not_new_is_refused(rollout: Rollout, weights: Weights) -> None:
    with pytest.raises(WeightSyncError, match="already"):
        rollout.push(weights, version=rollout.engine.version)


def test_what_vllm_refuses_becomes_a_rollout_error_that_survives_pickling(
    rollout: Rollout, clip: Clip, issue: Issue, prompt_ids: list[int]
) -> None:
    with pytest.raises(RolloutError, match=r"test/0.*vocabulary") as caught:
        rollout.run(rollout.engine.generate(issue, [*prompt_ids, 1_000_000], clip, SAMPLING))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_query_that_fills_the_models_length_is_sampled_and_one_token_more_is_refused_with_the_arithmetic(
    rollout: Rollout, clip: Clip, issue: Issue, prompt_ids: list[int], tiny_model_dir: Path
) -> None:
    video = load_vision_spec(tiny_model_dir).num_video_tokens(video_grid(clip.frames, load_vision_spec(tiny_model_dir)))
    text = 512 - video - SAMPLING.max_completion_tokens
    filled = [*prompt_ids, *prompt_ids[-1:] * (text - len(prompt_ids) + 1)]
    assert len(rollout.run(rollout.engine.generate(issue, filled, clip, SAMPLING)).responses) == SAMPLING.group_size
    arithmetic = (
        rf"test/0 about .* {text + 1} tokens of text \+ {video} of video \+ 24 of room .* = 513, and model\.max_"
    )
    with pytest.raises(UnfitQueryError, match=arithmetic) as caught:
        rollout.run(rollout.engine.generate(issue, [*filled, filled[-1]], clip, SAMPLING))
    assert pickle.loads(pickle.dumps(caught.value)).fault == "too_long"


def test_engine_that_cannot_start_says_why(tiny_model_dir: Path, rollout_config: Config) -> None:
    too_long = replace(rollout_config.model, max_tokens=1_000_000)
    with pytest.raises(RolloutError, match="max_position_embeddings"):
        asyncio.run(RolloutEngine.start(tiny_model_dir, too_long, rollout_config.rollout))


def large_clip(seed: int) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, size=(58, 112, 112, 3), dtype=np.uint8)
    times_s = np.arange(58, dtype=np.float32) / 2
    return Clip(key=f"large-{seed}", video="test.mp4", frames=frames, times_s=times_s, duration_s=29.0)


@pytest.fixture
def short(rollout: Rollout, tiny_model_dir: Path, query: GroundingQuery) -> Rollout:
    """The engine with a prompt that leaves room for a large clip."""
    prompt_ids = chat_prompt_ids(load_tokenizer(tiny_model_dir), query.question)
    return Rollout(rollout.runner, rollout.engine, query, prompt_ids)


def test_cache_of_pixels_holds_one_clip_that_fills_the_models_length(tiny_model_dir: Path) -> None:
    spec = load_vision_spec(tiny_model_dir)
    frames = large_clip(0).frames
    assert spec.num_video_tokens(video_grid(frames, spec)) == LARGE_CLIP_TOKENS
    assert frames.nbytes < clip_cache_bytes(spec, LARGE_CLIP_TOKENS) < frames.nbytes + 100_000
    assert clip_cache_bytes(spec, 512) < 2 * frames.nbytes


def test_groups_frames_reach_the_engines_process_once_and_as_bytes(short: Rollout) -> None:
    clip, sampling = large_clip(0), replace(SAMPLING, group_size=8)
    sent = [short.bytes_of(clip, sampling, seed) for seed in range(2)]  # two groups about one clip
    assert all(clip.frames.nbytes <= num_bytes <= 1.2 * clip.frames.nbytes for num_bytes in sent)


def test_naive_way_sends_the_frames_with_each_response_and_gets_the_same_ones(
    short: Rollout, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = short.sample(clip)
    monkeypatch.setattr(short.engine, "_client", NaiveClient(short.engine._llm))
    assert short.bytes_of(clip) > SAMPLING.group_size * clip.frames.nbytes
    assert [r.token_ids for r in short.sample(clip).responses] == [r.token_ids for r in group.responses]


def test_many_groups_at_once_see_their_own_clips_though_the_cache_holds_one_and_some_are_cancelled(
    short: Rollout, weights: Weights
) -> None:
    sampling = Sampling(group_size=8, temperature=1.0, max_completion_tokens=6)
    clips = [large_clip(seed) for seed in range(20)]
    requests = [(clip, sampling, seed) for seed in range(2) for clip in clips]

    async def sample_all_and_cancel_some() -> list[Group]:
        kept = [asyncio.ensure_future(short.generate(*request)) for request in requests]
        for clip, _, _ in requests[::4]:
            cancelled = asyncio.ensure_future(short.generate(clip, sampling))
            await asyncio.sleep(0.1)  # in all stages: being prepared, sent, waiting, sampled
            cancelled.cancel()
        return await asyncio.gather(*kept)

    groups = short.runner.run(sample_all_and_cancel_some())
    assert not short.engine._llm.output_processor.has_unfinished_requests()
    short.push(weights)  # forgets the keys, values and features of before
    alone = [short.sample(*request) for request in requests]
    for group, expected in zip(groups, alone, strict=True):
        pairs = zip(group.responses, expected.responses, strict=True)
        same = [(response, other) for response, other in pairs if response.token_ids == other.token_ids]
        assert len(same) >= 7, "one may differ: rounding depends on what else is in a batch"
        for response, other in same:
            np.testing.assert_allclose(response.logprobs, other.logprobs, atol=1e-5, rtol=0)
    assert len({tuple(response.token_ids for response in group.responses) for group in alone}) > 30, "clips matter"


def test_group_cancelled_while_it_is_sampled_leaves_nothing_behind(short: Rollout, clip: Clip) -> None:
    async def cancel() -> None:
        group = asyncio.ensure_future(short.generate(clip, replace(SAMPLING, max_completion_tokens=300)))
        await asyncio.sleep(0.3)
        group.cancel()
        with pytest.raises(asyncio.CancelledError):
            await group
        assert not short.engine._llm.output_processor.has_unfinished_requests()

    short.runner.run(cancel())
    assert len(short.sample(clip).responses) == SAMPLING.group_size


def test_frames_of_a_read_only_mapped_file_are_sampled_as_they_are(short: Rollout, clip: Clip, tmp_path: Path) -> None:
    clip.frames.tofile(tmp_path / "frames")
    mapped = np.memmap(tmp_path / "frames", dtype=np.uint8, mode="r", shape=clip.frames.shape)
    group = short.sample(replace(clip, key="mapped", frames=mapped))
    assert [r.token_ids for r in group.responses] == [r.token_ids for r in short.sample(clip).responses]


def test_pixels_that_are_missing_in_the_engines_process_fail_their_group_alone(
    short: Rollout, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = short.engine._client
    add = client._add

    async def add_without_pixels(engine_input: dict[str, Any], *args: Any) -> list[Any]:
        return await add({**engine_input, "mm_kwargs": {"video": [None]}}, *args)

    with monkeypatch.context() as patch, pytest.raises(RolloutError, match=r"test/0.*'error'"):
        patch.setattr(client, "_add", add_without_pixels)
        short.sample(replace(clip, key="never sent"))
    assert len(short.sample(replace(clip, key="never sent")).responses) == SAMPLING.group_size


def test_what_the_chat_template_opens_begins_the_text_of_a_response_and_none_of_its_tokens(
    rollout: Rollout, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rollout.sample(clip)
    monkeypatch.setattr(rollout.engine, "_opening", "<think>\n")
    opened = rollout.sample(clip)
    assert [response.text for response in opened.responses] == ["<think>\n" + r.text for r in plain.responses]
    assert [response.token_ids for response in opened.responses] == [r.token_ids for r in plain.responses]
