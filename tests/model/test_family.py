"""The families through their one interface: equal to the stock model, and the tower apart from its mergers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import ConfigError
from museg_ray.model.family import Family, VideoFeatures, family_of
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.positions import prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import VisionSpec, check_frames_fit, load_policy, load_tokenizer, load_vision_spec
from tests.model.timed_prompt import expand_timed_video

SIZES = [(6, 2, 3), (4, 4, 2), (2, 5, 5)]
"""Videos: frames, then height and width in tokens; several attention windows of Qwen2.5-VL, whole and cut ones."""


@pytest.fixture
def model(family_dir: Path) -> PreTrainedModel:
    return load_policy(family_dir, torch.float32)


@pytest.fixture
def family(model: PreTrainedModel) -> Family:
    return family_of(model.config.model_type)


@pytest.fixture(scope="module")
def spec(family_dir: Path) -> VisionSpec:
    return load_vision_spec(family_dir)


def video(spec: VisionSpec, num_frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches and grid [1, 3] of seeded noise; height and width in tokens."""
    size = (num_frames, height * spec.size_multiple, width * spec.size_multiple, 3)
    frames = np.random.default_rng(num_frames).integers(0, 256, size, dtype=np.uint8)
    return patchify(frames, spec), torch.tensor([video_grid(frames, spec)])


def assert_equal_features(given: VideoFeatures, expected: VideoFeatures) -> None:
    parts = zip((given.tokens, *given.deepstack), (expected.tokens, *expected.deepstack), strict=True)
    for given_part, expected_part in parts:
        torch.testing.assert_close(given_part, expected_part, rtol=0, atol=1e-6)


def test_tower_and_mergers_in_two_steps_equal_both_in_one(
    model: PreTrainedModel, family: Family, spec: VisionSpec
) -> None:
    patches, grids = zip(*(video(spec, *size) for size in SIZES), strict=True)
    inputs = torch.cat(patches), torch.cat(grids)
    expected = family.features(model, *inputs)
    assert expected.tokens.std() > 0.01, "features that hardly vary prove nothing"
    states = family.tower(model, *inputs)
    assert all(state.shape == (len(inputs[0]), states[0].shape[1]) for state in states)
    assert_equal_features(family.merge(model, states, inputs[1]), expected)


def test_several_videos_at_once_equal_each_one_alone(model: PreTrainedModel, family: Family, spec: VisionSpec) -> None:
    patches, grids = zip(*(video(spec, *size) for size in SIZES), strict=True)
    together = family.features(model, torch.cat(patches), torch.cat(grids))
    alone = [family.features(model, *one) for one in zip(patches, grids, strict=True)]
    deepstack = tuple(torch.cat(parts) for parts in zip(*(features.deepstack for features in alone), strict=True))
    assert_equal_features(together, VideoFeatures(torch.cat([features.tokens for features in alone]), deepstack))


def test_with_a_frozen_tower_gradients_reach_the_mergers_and_nothing_else(
    model: PreTrainedModel, family: Family, spec: VisionSpec
) -> None:
    patches, grids = video(spec, *SIZES[0])
    with torch.no_grad():
        states = family.tower(model, patches, grids)
    assert not any(state.requires_grad for state in states)
    features = family.merge(model, states, grids)
    torch.cat([features.tokens, *features.deepstack]).square().sum().backward()
    expected = {id(weight) for merger in family.mergers(model) for weight in merger.parameters()}
    reached = {id(weight) for weight in model.parameters() if weight.grad is not None}
    assert reached == expected != set()


def test_mergers_and_tower_together_are_the_vision_model(model: PreTrainedModel, family: Family) -> None:
    visual = model.model.visual
    of_mergers = {id(weight) for merger in family.mergers(model) for weight in merger.parameters()}
    names = {name.split(".")[0] for name, weight in visual.named_parameters() if id(weight) in of_mergers}
    tower_names = {name.split(".")[0] for name, weight in visual.named_parameters() if id(weight) not in of_mergers}
    assert not names & tower_names
    assert all("merger" in name for name in names) and not any("merger" in name for name in tower_names)


@pytest.fixture(scope="module")
def row(family_dir: Path, spec: VisionSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A prompt and a completion as one row: ids [L] and positions [3, L], with patches and grid of the video."""
    tokenizer = load_tokenizer(family_dir)
    patches, grids = video(spec, *SIZES[0])
    grid = tuple(grids[0].tolist())
    ids = chat_prompt_ids(tokenizer, "When is the red circle visible?")
    if spec.writes_times:
        ids = expand_timed_video(tokenizer, ids, grid, np.arange(6, dtype=np.float32), spec)
    else:
        ids = expand_video(ids, spec.num_video_tokens(grid), spec)
    ids += tokenizer.encode("<think>at 12.30</think>", add_special_tokens=False)
    positions = prompt_positions(ids, grid, seconds_per_grid(1.0, spec, torch.float32), spec)
    return torch.tensor(ids), positions, patches, grids


def our_logits(model: PreTrainedModel, family: Family, spec: VisionSpec, row: tuple[torch.Tensor, ...]) -> torch.Tensor:
    ids, positions, patches, grids = row
    features = family.features(model, patches, grids)
    rows = (ids == spec.video_token_id).nonzero()[:, 0]
    embeddings = model.get_input_embeddings()(ids).index_copy(0, rows, features.tokens)
    return model.lm_head(family.language(model, embeddings, positions, rows, features, attention_mask=None))


def stock_logits(model: PreTrainedModel, row: tuple[torch.Tensor, ...], spec: VisionSpec) -> torch.Tensor:
    ids, positions, patches, grids = row
    return model(
        input_ids=ids[None],
        attention_mask=torch.ones_like(ids)[None],
        position_ids=positions[:, None],
        mm_token_type_ids=(ids == spec.video_token_id).long()[None] * 2,
        pixel_values_videos=patches,
        video_grid_thw=grids,
    ).logits[0]


def gradients(model: PreTrainedModel, logits: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    model.zero_grad()
    logits.log_softmax(-1)[:, 7].sum().backward()
    yield from ((name, weight.grad.clone()) for name, weight in model.named_parameters())


def assert_close_gradients(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, gradient in expected.items():
        difference = (given[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert difference < 1e-5, f"{name}: {difference}"


def test_a_whole_row_equals_the_stock_models_forward_and_backward(
    model: PreTrainedModel, family: Family, spec: VisionSpec, row: tuple[torch.Tensor, ...]
) -> None:
    ours, stock = our_logits(model, family, spec, row), stock_logits(model, row, spec)
    torch.testing.assert_close(ours.log_softmax(-1), stock.log_softmax(-1), rtol=0, atol=1e-5)
    assert_close_gradients(dict(gradients(model, ours)), dict(gradients(model, stock)))


def test_gradient_checkpointing_changes_no_log_prob_and_no_gradient(
    model: PreTrainedModel, family: Family, spec: VisionSpec, row: tuple[torch.Tensor, ...]
) -> None:
    plain = our_logits(model, family, spec, row)
    expected = dict(gradients(model, plain))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = count_calls(model.model.language_model.layers[0].mlp), count_calls(model.model.visual.blocks[0].mlp)
    checkpointed = our_logits(model, family, spec, row)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-6)
    assert_close_gradients(dict(gradients(model, checkpointed)), expected)
    assert [len(of_layer) for of_layer in calls] == [2, 2], "each layer is computed again in the backward pass"


def count_calls(layer: nn.Module) -> list[None]:
    calls: list[None] = []
    layer.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


def test_deepstack_features_matter(tiny_qwen3_dir: Path) -> None:
    model, spec = load_policy(tiny_qwen3_dir, torch.float32), load_vision_spec(tiny_qwen3_dir)
    family = family_of("qwen3_vl")
    patches, grids = video(spec, *SIZES[0])
    features = family.features(model, patches, grids)
    assert len(features.deepstack) == 2
    rows = torch.arange(len(features.tokens)) + 3
    embeddings = torch.randn(len(rows) + 6, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(len(embeddings)).expand(3, -1)
    with_all = family.language(model, embeddings, positions, rows, features, attention_mask=None)
    without = family.language(model, embeddings, positions, rows, VideoFeatures(features.tokens), attention_mask=None)
    assert torch.equal(with_all[:3], without[:3]) and (with_all[-1] - without[-1]).abs().max() > 0.01


def test_frames_of_a_size_that_the_model_cannot_cut_into_tokens_are_refused(
    tiny_model_dir: Path, tiny_qwen3_dir: Path
) -> None:
    check_frames_fit(VideoConfig(), tiny_model_dir)
    check_frames_fit(VideoConfig(size_multiple=32, pair_tokens=11), tiny_qwen3_dir)
    with pytest.raises(ConfigError, match=r"video\.size_multiple is 28, .* multiples of 32 .*size_multiple=32"):
        check_frames_fit(VideoConfig(pair_tokens=11), tiny_qwen3_dir)
    with pytest.raises(ConfigError, match=r"video\.pair_tokens is 0, .* up to 11 tokens .*pair_tokens=11"):
        check_frames_fit(VideoConfig(size_multiple=32), tiny_qwen3_dir)
