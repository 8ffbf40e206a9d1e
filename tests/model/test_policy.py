"""The policy's log-probs and gradients: a packed group equals G separate rows through the stock model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from museg_ray.model.packing import pack_group
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.policy import PolicyModel
from museg_ray.model.positions import completion_positions, prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import (
    FORBIDDEN_LOGIT_BIAS,
    VisionSpec,
    forbidden_token_ids,
    load_policy,
    load_tokenizer,
    load_vision_spec,
)
from museg_ray.types import Clip

TEMPERATURE = 0.9


@pytest.fixture(scope="module")
def spec(tiny_model_dir: Path) -> VisionSpec:
    return load_vision_spec(tiny_model_dir)


@pytest.fixture(scope="module")
def forbidden(tiny_model_dir: Path) -> list[int]:
    tokenizer = load_tokenizer(tiny_model_dir)
    return forbidden_token_ids(tokenizer, load_policy(tiny_model_dir, torch.float32).config.text_config.vocab_size)


@pytest.fixture
def policy(tiny_model_dir: Path, forbidden: list[int]) -> PolicyModel:
    return PolicyModel(load_policy(tiny_model_dir, torch.float32), forbidden, TEMPERATURE)


@pytest.fixture(scope="module")
def prompt(tiny_model_dir: Path, spec: VisionSpec, clip: Clip) -> tuple[list[int], torch.Tensor]:
    """Expanded prompt ids [P] and positions [3, P] of a question about `clip`."""
    grid = video_grid(clip.frames, spec)
    ids = chat_prompt_ids(load_tokenizer(tiny_model_dir), "When is the red circle visible?")
    ids = expand_video(ids, spec.num_video_tokens(grid), spec)
    return ids, prompt_positions(ids, grid, seconds_per_grid(clip.sample_fps, spec, torch.float32), spec)


def stock_logprobs(
    model: Qwen2_5_VLForConditionalGeneration,
    prompt: tuple[list[int], torch.Tensor],
    completion: list[int],
    video: tuple[torch.Tensor, tuple[int, int, int]],
    forbidden: list[int],
) -> torch.Tensor:
    """[C] log-probs of one completion as a row of its own through the stock forward, explicit positions."""
    ids, positions = prompt
    row = torch.tensor([*ids, *completion])[None]
    row_positions = torch.cat([positions, completion_positions(positions, len(completion))], dim=1)
    logits = model(
        input_ids=row,
        attention_mask=torch.ones_like(row),
        position_ids=row_positions[:, None],
        pixel_values_videos=video[0],
        video_grid_thw=torch.tensor([video[1]]),
    ).logits[0, len(ids) - 1 : -1]
    bias = torch.zeros(logits.shape[-1]).index_fill(0, torch.tensor(forbidden), FORBIDDEN_LOGIT_BIAS)
    logprobs = ((logits + bias) / TEMPERATURE).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("lengths", [[5, 1, 9], [0, 7, 0, 3, 1], [4], [12, 12, 12, 12]])
def test_packed_logprobs_and_gradients_equal_those_of_separate_rows(
    policy: PolicyModel,
    prompt: tuple[list[int], torch.Tensor],
    clip: Clip,
    spec: VisionSpec,
    forbidden: list[int],
    lengths: list[int],
) -> None:
    rng = np.random.default_rng(sum(lengths))
    completions = [rng.integers(0, 256, length).tolist() for length in lengths]
    video = patchify(clip.frames, spec), video_grid(clip.frames, spec)
    weights = torch.tensor(rng.normal(size=sum(lengths)), dtype=torch.float32)

    packed = policy(pack_group(*prompt, completions), *video)
    (packed * weights).sum().backward()
    packed_gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()

    rows = [stock_logprobs(policy.model, prompt, c, video, forbidden) for c in completions if c]
    (torch.cat(rows) * weights).sum().backward()
    torch.testing.assert_close(packed, torch.cat(rows), rtol=0, atol=1e-5)
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        difference = (packed_gradients[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-6)
        assert difference < 1e-5, f"{name}: {difference}"


def test_a_group_of_empty_completions_has_no_logprobs_and_zero_gradients(
    policy: PolicyModel, prompt: tuple[list[int], torch.Tensor], clip: Clip, spec: VisionSpec
) -> None:
    logprobs = policy(pack_group(*prompt, [[], []]), patchify(clip.frames, spec), video_grid(clip.frames, spec))
    assert logprobs.shape == (0,)
    logprobs.sum().backward()
    assert all(not p.grad.any() for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("place", ["start", "middle", "end", "everywhere"])
def test_special_tokens_anywhere_in_a_completion_do_not_crash_and_stay_finite(
    policy: PolicyModel,
    prompt: tuple[list[int], torch.Tensor],
    clip: Clip,
    spec: VisionSpec,
    forbidden: list[int],
    place: str,
) -> None:
    plain = [10, 11, 12, 13]
    at = {"start": 0, "middle": 2, "end": 4}.get(place)
    tricky = forbidden if at is None else [*plain[:at], spec.video_token_id, *plain[at:]]
    pack = pack_group(*prompt, [tricky, plain])
    logprobs = policy(pack, patchify(clip.frames, spec), video_grid(clip.frames, spec))
    logprobs.sum().backward()
    assert bool(logprobs.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)
    expected_allowed = [token not in forbidden for token in [*tricky, *plain]]
    assert policy.is_allowed(pack.targets).tolist() == expected_allowed


def test_a_vision_placeholder_in_one_completion_leaves_the_others_untouched(
    policy: PolicyModel, prompt: tuple[list[int], torch.Tensor], clip: Clip, spec: VisionSpec
) -> None:
    video = patchify(clip.frames, spec), video_grid(clip.frames, spec)
    with torch.no_grad():
        alone = policy(pack_group(*prompt, [[10, 11, 12]]), *video)
        beside = policy(pack_group(*prompt, [[spec.video_token_id] * 3, [10, 11, 12]]), *video)
    torch.testing.assert_close(beside[3:], alone, rtol=0, atol=1e-5)


def test_forbidden_tokens_get_no_probability_and_temperature_is_applied(
    policy: PolicyModel, prompt: tuple[list[int], torch.Tensor], clip: Clip, spec: VisionSpec, forbidden: list[int]
) -> None:
    vocab = policy.logit_bias.numel()
    video = patchify(clip.frames, spec), video_grid(clip.frames, spec)
    with torch.no_grad():  # every token of the vocabulary as the first token of a completion of its own
        logprobs = policy(pack_group(*prompt, [[token] for token in range(vocab)]), *video)
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert logprobs[forbidden].max().item() < -50.0
