"""Model folders: what is refused and how, and that saving and loading are inverse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from museg_ray.errors import ModelError
from museg_ray.model.qwen_vl import (
    end_token_id,
    forbidden_token_ids,
    load_policy,
    load_tokenizer,
    load_vision_spec,
    resolve_model_path,
    save_policy,
)


@pytest.fixture
def model_copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def test_a_complete_folder_is_accepted(tiny_model_dir: Path) -> None:
    assert resolve_model_path(str(tiny_model_dir)) == tiny_model_dir.resolve()


def test_a_missing_folder_is_named_in_the_error() -> None:
    with pytest.raises(ModelError, match=r"/no/such/model does not exist; set model\.path"):
        resolve_model_path("/no/such/model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "processor_config.json"])
def test_a_missing_file_is_named_in_the_error(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    wanted = name.replace("model.safetensors", "*.safetensors")
    with pytest.raises(ModelError) as error:
        resolve_model_path(str(model_copy))
    assert str(model_copy) in str(error.value) and wanted in str(error.value)


def test_a_missing_shard_is_named_in_the_error(model_copy: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_copy / "model.safetensors").rename(model_copy / "model-00001-of-00002.safetensors")
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors \(1 of 2"):
        resolve_model_path(str(model_copy))


def test_another_architecture_is_refused(model_copy: Path) -> None:
    (model_copy / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="'llama'"):
        resolve_model_path(str(model_copy))


def test_damaged_weights_are_a_model_error(model_copy: Path) -> None:
    (model_copy / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_policy(model_copy, torch.float32)


def test_weights_that_lack_a_tensor_are_refused(model_copy: Path) -> None:
    weights = load_file(model_copy / "model.safetensors")
    lacking = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight"))
    save_file({k: v for k, v in weights.items() if k != lacking}, model_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors, .*layers\.0\.mlp\.up_proj"):
        load_policy(model_copy, torch.float32)


def test_every_special_token_and_padding_row_but_the_end_token_is_forbidden(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    vocab_size = len(tokenizer) + 3
    forbidden = forbidden_token_ids(tokenizer, vocab_size)
    assert end_token_id(tokenizer) not in forbidden
    for token in ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|endoftext|>"):
        assert tokenizer.convert_tokens_to_ids(token) in forbidden
    assert set(range(len(tokenizer), vocab_size)) <= set(forbidden)
    plain = set(tokenizer.encode("Is the red circle visible from 12.30 to 15.00? <answer>", add_special_tokens=False))
    assert not plain & set(forbidden)


def test_the_vision_spec_is_that_of_the_model(tiny_model_dir: Path) -> None:
    spec = load_vision_spec(tiny_model_dir)
    assert (spec.patch_size, spec.merge_size, spec.temporal_patch_size) == (14, 2, 2)
    assert spec.num_video_tokens((12, 4, 4)) == 48


def test_a_saved_policy_loads_with_equal_weights_and_the_same_tokenizer(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_model_dir, torch.float32)
    with torch.no_grad():
        policy.model.language_model.embed_tokens.weight.add_(1.0)
    out_dir = tmp_path / "model"
    for _ in range(2):  # the second write replaces the first
        save_policy(policy, tiny_model_dir, out_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    reloaded = load_policy(resolve_model_path(str(out_dir)), torch.float32).state_dict()
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, reloaded[name]), name
    text = "from 12.30 to 15.00<|im_end|>"
    assert load_tokenizer(out_dir).encode(text) == load_tokenizer(tiny_model_dir).encode(text)
    assert load_vision_spec(out_dir) == load_vision_spec(tiny_model_dir)


def test_an_interrupted_save_leaves_the_old_folder_and_nothing_half_written(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny_model_dir, torch.float32)
    out_dir = tmp_path / "model"
    save_policy(policy, tiny_model_dir, out_dir)
    before = (out_dir / "model.safetensors").read_bytes()

    def disk_full(folder: Path, **_: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(policy, "save_pretrained", disk_full)
    with pytest.raises(OSError, match="No space"):
        save_policy(policy, tiny_model_dir, out_dir)
    assert (out_dir / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
