"""One real vLLM engine with a Qwen3-VL, for the whole file, against Hugging Face: times as text, DeepStack, weights."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from museg_ray.config.schema import Config
from museg_ray.errors import UnfitQueryError
from museg_ray.model.patchify import video_grid
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.model.qwen_vl import forbidden_token_ids, load_policy, load_tokenizer, load_vision_spec
from museg_ray.rollout.engine import RolloutEngine, Sampling
from museg_ray.rollout.vllm_setup import clip_cache_bytes, engine_environment
from museg_ray.types import Clip, GroundingQuery, Group, Issue
from museg_ray.weights.layout import VISION, Part, part_of
from tests.model.timed_prompt import expand_timed_video
from tests.rollout.conftest import Reference
from tests.weights.weight_files import weights_file

SAMPLING = Sampling(group_size=4, temperature=0.9, max_completion_tokens=24)
MAX_TOKENS = 1024
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights(tiny_qwen3_dir: Path) -> Weights:
    return {name: tensor.detach() for name, tensor in load_policy(tiny_qwen3_dir, torch.float32).named_parameters()}


@pytest.fixture(scope="module")
def prompt_ids(tiny_qwen3_dir: Path, query: GroundingQuery) -> list[int]:
    return chat_prompt_ids(load_tokenizer(tiny_qwen3_dir), f"When can you see that {query.question}?")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def fresh_engine(tiny_qwen3_dir: Path, rollout_config: Config, runner: asyncio.Runner) -> Iterator[RolloutEngine]:
    model = replace(rollout_config.model, max_tokens=MAX_TOKENS)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(rollout_config.rollout).items():
            patch.setenv(name, value)
        engine = runner.run(RolloutEngine.start(tiny_qwen3_dir, model, rollout_config.rollout))
        yield engine
        engine.close()


def push(engine: RolloutEngine, runner: asyncio.Runner, weights: Weights, frozen: Collection[Part] = ()) -> None:
    with weights_file(weights, engine.version + 1, frozen) as file:
        runner.run(engine.update_weights(engine.version + 1, file))


@pytest.fixture
def engine(fresh_engine: RolloutEngine, runner: asyncio.Runner, weights: Weights) -> RolloutEngine:
    """The engine with the model folder's weights, whatever the test before has pushed."""
    push(fresh_engine, runner, weights)
    return fresh_engine


def make_clip(seed: int, num_frames: int, height: int, width: int, fps: float) -> Clip:
    """Seeded noise of `height` x `width` tokens, at times that are not evenly spaced."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, 32 * height, 32 * width, 3), dtype=np.uint8)
    times_s = ((np.arange(num_frames) + rng.uniform(0, 0.4, num_frames)) / fps).astype(np.float32)
    return Clip(f"qwen3-{seed}-{fps}", "test.mp4", frames, times_s, num_frames / fps)


CLIPS = [
    make_clip(0, 24, 2, 3, 2.0),
    make_clip(1, 8, 3, 2, 1.9),
    make_clip(2, 16, 1, 1, 0.13),
    make_clip(3, 4, 4, 4, 30),
]


def sample(
    engine: RolloutEngine, runner: asyncio.Runner, issue: Issue, prompt_ids: list[int], *clips: Clip
) -> list[Group]:
    async def gather() -> list[Group]:
        return await asyncio.gather(*(engine.generate(issue, prompt_ids, clip, SAMPLING) for clip in clips))

    return runner.run(gather())


@pytest.fixture
def sample_all(
    engine: RolloutEngine, runner: asyncio.Runner, issue: Issue, prompt_ids: list[int]
) -> Callable[..., list[Group]]:
    """`sample_all(*clips)`: a group about each, all at once."""
    return partial(sample, engine, runner, issue, prompt_ids)


def largest_gap(model_dir: Path, weights: Weights, clip: Clip, group: Group) -> float:
    """Between the engine's log-probs and those of the stock model with our positions."""
    reference, tokenizer = Reference(model_dir, weights, clip), load_tokenizer(model_dir)
    forbidden = forbidden_token_ids(tokenizer, len(weights["model.language_model.embed_tokens.weight"]))
    gaps = [
        np.abs(r.logprobs - reference.logprobs(group.prompt_ids, r.token_ids, forbidden, SAMPLING.temperature).numpy())
        for r in group.responses
    ]
    return float(max(gap.max() for gap in gaps))


def test_prompts_hold_the_clips_own_times(
    sample_all: Callable[..., list[Group]], tiny_qwen3_dir: Path, prompt_ids: list[int]
) -> None:
    tokenizer, spec = load_tokenizer(tiny_qwen3_dir), load_vision_spec(tiny_qwen3_dir)
    for clip, group in zip(CLIPS, sample_all(*CLIPS), strict=True):
        grid = video_grid(clip.frames, spec)
        assert list(group.prompt_ids) == expand_timed_video(tokenizer, prompt_ids, grid, clip.times_s, spec)
        text = tokenizer.decode(group.prompt_ids)
        first, last = (float(clip.times_s[at : at + 2].astype(np.float64).mean()) for at in (0, len(clip.times_s) - 2))
        assert f"<{first:.1f} seconds>" in text and f"<{last:.1f} seconds>" in text


def test_logprobs_of_groups_sampled_together_agree_with_hugging_face(
    sample_all: Callable[..., list[Group]], tiny_qwen3_dir: Path, weights: Weights
) -> None:
    groups = sample_all(*CLIPS)
    for clip, group in zip(CLIPS, groups, strict=True):
        assert len(group.responses) == SAMPLING.group_size
        assert largest_gap(tiny_qwen3_dir, weights, clip, group) < 1e-5
    other_pixels = replace(CLIPS[0], frames=255 - CLIPS[0].frames)
    assert largest_gap(tiny_qwen3_dir, weights, other_pixels, groups[0]) > 0.1, "the video must matter"


@pytest.mark.parametrize("frozen", [frozenset(), frozenset({Part.TOWER}), VISION], ids=lambda parts: f"{sorted(parts)}")
def test_pushed_weights_reach_every_layer_that_is_not_frozen(
    engine: RolloutEngine,
    runner: asyncio.Runner,
    sample_all: Callable[..., list[Group]],
    tiny_qwen3_dir: Path,
    weights: Weights,
    frozen: frozenset[Part],
) -> None:
    clip = CLIPS[0]
    (before,) = sample_all(clip)  # fills the caches with keys, values and features of the old weights
    noise = torch.Generator().manual_seed(0)
    changed = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=noise)
        for name, tensor in weights.items()
        if part_of(name) not in frozen
    }
    assert any("deepstack_merger_list" in name for name in changed) == (Part.MERGER not in frozen)
    push(engine, runner, changed, frozen)
    (group,) = sample_all(clip)
    assert group.weight_version == before.weight_version + 1
    assert largest_gap(tiny_qwen3_dir, {**weights, **changed}, clip, group) < 1e-5
    assert largest_gap(tiny_qwen3_dir, weights, clip, group) > 0.1, "the weights must matter"


def test_pixels_of_a_clip_that_fills_the_models_length_are_sent_once(
    engine: RolloutEngine, sample_all: Callable[..., list[Group]], tiny_qwen3_dir: Path, weights: Weights
) -> None:
    clip = make_clip(9, 8, 12, 16, 2.0)
    spec = load_vision_spec(tiny_qwen3_dir)
    assert clip.frames.nbytes < clip_cache_bytes(spec, MAX_TOKENS) < 2 * clip.frames.nbytes
    before = engine.bytes_sent
    (group,) = sample_all(clip)
    assert clip.frames.nbytes <= engine.bytes_sent - before <= 1.2 * clip.frames.nbytes
    assert largest_gap(tiny_qwen3_dir, weights, clip, group) < 1e-5


def test_written_times_count_where_the_room_is_checked(
    engine: RolloutEngine, runner: asyncio.Runner, issue: Issue, prompt_ids: list[int]
) -> None:
    """A clip of 16 tokens of pixels takes hundreds more for the times of its pairs."""
    clip = make_clip(5, 32, 1, 1, 0.01)
    (group,) = sample(engine, runner, issue, prompt_ids, clip)
    total = len(group.prompt_ids) + SAMPLING.max_completion_tokens
    filled = [*prompt_ids, *prompt_ids[-1:] * (MAX_TOKENS - total)]
    assert len(sample(engine, runner, issue, filled, clip)[0].prompt_ids) == MAX_TOKENS - SAMPLING.max_completion_tokens
    with pytest.raises(UnfitQueryError, match=rf"= {MAX_TOKENS + 1}, and model\.max_tokens is {MAX_TOKENS}"):
        sample(engine, runner, issue, [*filled, filled[-1]], clip)
