"""Adapters: what they compute, what trains, and the plain weights that they become."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from museg_ray.config.learning import LoraConfig
from museg_ray.errors import ConfigError, ModelError
from museg_ray.model.lora import adapters_off, add_adapters, merge_adapters, merged_weights
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import load_policy, load_tokenizer, load_vision_spec
from museg_ray.types import Clip

LORA = LoraConfig(rank=4, alpha=6.0)
LAYERS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
LAYERS += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
Model = Qwen2_5_VLForConditionalGeneration
Logprobs = Callable[[nn.Module], torch.Tensor]


@pytest.fixture
def plain(tiny_model_dir: Path) -> Model:
    return load_policy(tiny_model_dir, torch.float32)


@pytest.fixture
def adapted(tiny_model_dir: Path) -> Model:
    """With adapters that have learnt something."""
    torch.manual_seed(0)
    model = load_policy(tiny_model_dir, torch.float32)
    add_adapters(model, LORA)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture
def logprobs(tiny_model_dir: Path, clip: Clip) -> Logprobs:
    """[L, V] of a question about `clip`, by the stock forward."""
    spec = load_vision_spec(tiny_model_dir)
    grid = video_grid(clip.frames, spec)
    ids = chat_prompt_ids(load_tokenizer(tiny_model_dir), "When is the red circle visible?")
    input_ids = torch.tensor(expand_video(ids, spec.num_video_tokens(grid), spec))[None]  # [1, L]
    inputs = {
        "input_ids": input_ids,
        "mm_token_type_ids": (input_ids == spec.video_token_id).long() * 2,
        "pixel_values_videos": patchify(clip.frames, spec),
        "video_grid_thw": torch.tensor([grid]),
    }
    return lambda model: model(**inputs).logits[0].log_softmax(-1)


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if ".lora_" in name}


def test_model_with_fresh_adapters_is_its_base_to_the_last_bit(plain: Model, logprobs: Logprobs) -> None:
    expected = logprobs(plain)
    add_adapters(plain, LORA)
    assert type(plain) is Qwen2_5_VLForConditionalGeneration
    assert torch.equal(logprobs(plain), expected)


def test_every_linear_layer_of_the_language_models_blocks_has_an_adapter(plain: Model) -> None:
    num_layers = plain.config.text_config.num_hidden_layers
    add_adapters(plain, LORA)
    with_adapters = {name.partition(".lora_")[0] for name in adapters(plain)}
    assert with_adapters == {f"model.language_model.layers.{i}.{layer}" for i in range(num_layers) for layer in LAYERS}
    assert all(LORA.rank in weight.shape for weight in adapters(plain).values())


@pytest.mark.parametrize("trains_vision", [True, False])
def test_adapters_train_and_vision_as_before_and_nothing_else(
    plain: Model, logprobs: Logprobs, trains_vision: bool
) -> None:
    plain.model.visual.requires_grad_(trains_vision)
    add_adapters(plain, LORA)
    for name, weight in adapters(plain).items():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)  # A has no gradient while B is zero
    logprobs(plain)[:, 0].sum().backward()
    with_gradient = {name for name, weight in plain.named_parameters() if weight.grad is not None}
    vision = {name for name, _ in plain.named_parameters() if ".visual." in name}
    assert with_gradient == adapters(plain).keys() | (vision if trains_vision else set())
    assert all(weight.grad.abs().sum() > 0 for weight in adapters(plain).values())


def test_merged_weights_are_a_plain_model_that_computes_the_same(
    plain: Model, adapted: Model, logprobs: Logprobs
) -> None:
    before = logprobs(plain)
    merged = dict(merged_weights(adapted.named_parameters(), LORA))
    assert merged.keys() == dict(plain.named_parameters()).keys()  # tied embeddings once
    assert plain.load_state_dict(merged, strict=False).missing_keys == ["lm_head.weight"]
    torch.testing.assert_close(logprobs(plain), logprobs(adapted), atol=1e-5, rtol=0)
    assert (logprobs(plain) - before).abs().max() > 0.1, "the adapters matter"


def test_only_one_layers_tensors_are_held_while_merging(adapted: Model) -> None:
    held = 0
    most_held = 0

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal held, most_held
        for name, weight in adapted.named_parameters():
            held += 1
            most_held = max(most_held, held)
            yield name, weight

    for name, _ in merged_weights(gathered(), LORA):
        is_merged = "language_model" in name and name.endswith("_proj.weight")
        held -= 3 if is_merged else 1
    assert (held, most_held) == (0, 3)  # W, A, B


def test_merging_keeps_the_dtype_of_the_weights_and_computes_in_float32() -> None:
    weight = torch.ones(2, 2, dtype=torch.bfloat16)
    a, b = torch.full((4, 2), 2**-5).bfloat16(), torch.full((2, 4), 2**-5).bfloat16()
    names = ["q.base_layer.weight", "q.lora_A.default.weight", "q.lora_B.default.weight"]
    ((name, merged),) = merged_weights(zip(names, [weight, a, b], strict=True), LORA)
    assert name == "q.weight" and merged.dtype is torch.bfloat16
    # 1 + 1.5 * 4 * 2**-10 is nearer to the next bfloat16 than to 1
    assert torch.equal(merged, torch.full((2, 2), 1 + 2**-7).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_adapters_and_vision_merge_bit_for_bit_as_the_learners(
    tiny_model_dir: Path, adapted: Model, dtype: torch.dtype
) -> None:
    master = {name: weight.detach() for name, weight in adapted.named_parameters()}
    trained = {name: master[name] * 1.01 for name in master if ".lora_" in name or ".merger." in name}
    learner = ((name, trained.get(name, weight).to(dtype)) for name, weight in master.items())
    expected = dict(merged_weights(learner, LORA))
    base = load_policy(tiny_model_dir, dtype).named_parameters()
    merged = dict(merge_adapters(base, trained, LORA))
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    assert {weight.dtype for weight in merged.values()} == {dtype}


def test_checkpoint_of_another_model_is_refused(plain: Model) -> None:
    foreign = "model.language_model.layers.99.mlp.up_proj.lora_A.default.weight"
    with pytest.raises(ModelError, match=re.escape(foreign)):
        dict(merge_adapters(plain.named_parameters(), {foreign: torch.zeros(4, 128)}, LORA))


def test_without_its_adapters_a_model_is_its_base_to_the_last_bit(
    plain: Model, adapted: Model, logprobs: Logprobs
) -> None:
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    with_adapters = logprobs(adapted)
    with adapters_off(adapted):
        off = logprobs(adapted)
    assert torch.equal(off, logprobs(plain)) and not off.requires_grad
    assert torch.equal(logprobs(adapted), with_adapters)
    assert [name for name, weight in adapted.named_parameters() if weight.requires_grad] == trained


def test_adapters_are_on_again_after_an_error(adapted: Model, logprobs: Logprobs) -> None:
    expected = logprobs(adapted)
    with pytest.raises(RuntimeError, match="boom"), adapters_off(adapted):
        raise RuntimeError("boom")
    assert torch.equal(logprobs(adapted), expected) and torch.is_grad_enabled()


def test_gradients_under_checkpointing_are_the_same_with_a_reference_pass_between(
    adapted: Model, logprobs: Logprobs
) -> None:
    passes: list[nn.Module] = []
    first_layer = adapted.model.language_model.layers[0]
    first_layer.self_attn.q_proj.lora_A.default.register_forward_hook(lambda module, *_: passes.append(module))
    logprobs(adapted)[:, 0].sum().backward()
    expected = {name: weight.grad for name, weight in adapters(adapted).items()}
    adapted.zero_grad()

    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    loss = logprobs(adapted)[:, 0].sum()
    with adapters_off(adapted):
        logprobs(adapted)
    assert len(passes) == 2
    loss.backward()
    assert len(passes) == 3, "the layer was computed anew, with its adapters"
    for name, weight in adapters(adapted).items():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_adapters_follow_from_the_seed_and_have_the_models_dtype(tiny_model_dir: Path) -> None:
    def fresh(seed: int) -> dict[str, nn.Parameter]:
        model = load_policy(tiny_model_dir, torch.bfloat16)
        torch.manual_seed(seed)
        add_adapters(model, LORA)
        return adapters(model)

    first, again, other = fresh(0), fresh(0), fresh(1)
    assert {weight.dtype for weight in first.values()} == {torch.bfloat16}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_rank_above_that_of_a_layer_is_refused(plain: Model) -> None:
    limit = plain.model.language_model.layers[0].self_attn.k_proj.out_features
    with pytest.raises(ConfigError, match=rf"learner\.lora\.rank is {limit + 1}, but .*_proj has only {limit}"):
        add_adapters(plain, LoraConfig(rank=limit + 1))
    assert not adapters(plain)
    add_adapters(plain, LoraConfig(rank=limit))
