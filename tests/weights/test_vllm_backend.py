"""What the engine's process makes of a blob before it touches a weight; the reload itself: tests/rollout."""

import pytest
import torch
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR
from museg_ray.weights.layout import VISION, Part
from museg_ray.weights.vllm_backend import check_weights, layers_to_reload, weight_shapes_of


@pytest.fixture
def model() -> torch.nn.Module:
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(PACKAGED_MODEL_DIR))


def test_wanted_weights_are_those_of_hugging_face_with_tied_ones_once(model: torch.nn.Module) -> None:
    shapes = weight_shapes_of(AutoConfig.from_pretrained(PACKAGED_MODEL_DIR))
    assert shapes == {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    assert "lm_head.weight" not in shapes


def test_file_that_differs_from_the_model_is_refused() -> None:
    wanted = {"a": (2, 3), "b": (4,)}
    check_weights({"b": (4,), "a": (2, 3)}, wanted)
    with pytest.raises(ValueError, match="lacks 1 of 2 weights, b among"):
        check_weights({"a": (2, 3)}, wanted)
    with pytest.raises(ValueError, match="has 1 weights that do not belong in it, c among"):
        check_weights({**wanted, "c": (1,)}, wanted)
    with pytest.raises(ValueError, match=r"has a in shape \(3, 2\), the model in \(2, 3\)"):
        check_weights({**wanted, "a": (3, 2)}, wanted)


def test_layers_to_reload_are_the_trained_ones(model: torch.nn.Module) -> None:
    visual, language = model.model.visual, model.model.language_model
    assert list(layers_to_reload(model, frozenset())) == [model]
    assert list(layers_to_reload(model.model, VISION, "model.")) == [language]
    assert list(layers_to_reload(model.model, {Part.TOWER}, "model.")) == [visual.merger, language]
    assert list(layers_to_reload(model.model, {Part.MERGER}, "model.")) == [
        visual.patch_embed,
        visual.blocks,
        language,
    ]
