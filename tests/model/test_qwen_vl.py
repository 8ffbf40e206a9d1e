"""Model folders: what is refused and how, and that saving and loading are inverse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_a_complete_folder_is_accepted(family_dir: Path) -> None:
    assert resolve_model_path(str(family_dir)) == family_dir.resolve()


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
    with pytest.raises(ModelError, match="'llama'; museg_ray trains 'qwen2_5_vl' or 'qwen3_vl'"):
        resolve_model_path(str(model_copy))


@pytest.mark.parametrize("content", [b"[]", b"{}", b"caf\xe9", b"[" * 5_000])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_a_model_error(model_copy: Path, name: str, content: bytes) -> None:
    (model_copy / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name} is not a JSON object with"):
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


def test_think_tags_that_are_tokens_of_their_own_may_be_sampled(tiny_qwen3_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_qwen3_dir)
    tokenizer.add_tokens(["<tool_call>"])
    tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert set(tags) <= set(tokenizer.added_tokens_decoder)
    forbidden = forbidden_token_ids(tokenizer, len(tokenizer))
    assert not set(tags) & set(forbidden)
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in forbidden


def test_the_vision_spec_is_that_of_the_model(tiny_model_dir: Path) -> None:
    spec = load_vision_spec(tiny_model_dir)
    assert (spec.patch_size, spec.merge_size, spec.temporal_patch_size) == (14, 2, 2)
    assert spec.num_video_tokens((12, 4, 4)) == 48
    assert not spec.writes_times and spec.size_multiple == 28


def test_the_vision_spec_of_qwen3_vl_has_its_own_sizes_and_no_positions_a_second(tiny_qwen3_dir: Path) -> None:
    spec, tokenizer = load_vision_spec(tiny_qwen3_dir), load_tokenizer(tiny_qwen3_dir)
    assert (spec.patch_size, spec.merge_size, spec.temporal_patch_size, spec.size_multiple) == (16, 2, 2, 32)
    assert spec.writes_times and spec.tokens_per_second is None
    assert spec.image_mean == spec.image_std == (0.5, 0.5, 0.5)
    ids = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", "<|video_pad|>"])
    assert [spec.vision_start_id, spec.vision_end_id, spec.video_token_id] == ids


def test_a_saved_policy_loads_with_equal_weights_and_the_same_tokenizer(family_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(family_dir, torch.float32)
    with torch.no_grad():
        policy.model.language_model.embed_tokens.weight.add_(1.0)
    out_dir = tmp_path / "model"
    for _ in range(2):  # the second write replaces the first
        save_policy(policy, family_dir, out_dir)
        (out_dir / "museg_config.yaml").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    reloaded = load_policy(resolve_model_path(str(out_dir)), torch.float32).state_dict()
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, reloaded[name]), name
    text = "from 12.30 to 15.00<|im_end|>"
    assert load_tokenizer(out_dir).encode(text) == load_tokenizer(family_dir).encode(text)
    assert load_vision_spec(out_dir) == load_vision_spec(family_dir)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tokens: [token for token in tokens if token["content"] != "<|video_pad|>"], "is token None of the"),
        (
            lambda tokens: [*tokens, *({**tokens[-1], "id": 400 + i, "content": f"<|{i}|>"} for i in range(20))],
            "tokens up to .*vocabulary ends at",
        ),
    ],
    ids=["without the video's token", "more tokens than the model"],
)
def test_another_models_tokenizer_is_refused(
    change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], told: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        content["model"]["vocab"].pop(token["content"], None)
    content["added_tokens"] = change(content["added_tokens"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").unlink()
    shutil.copyfile(tiny_model_dir / "chat_template.jinja", folder / "chat_template.jinja")
    with pytest.raises(ModelError, match=told):
        load_tokenizer(folder)


def test_a_model_that_is_replaced_loses_its_own_files_and_none_of_a_persons(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    policy, out_dir = load_policy(tiny_model_dir, torch.float32), tmp_path / "model"
    save_policy(policy, tiny_model_dir, out_dir)
    save_policy(policy, tiny_model_dir, out_dir)
    assert (tmp_path / "model.old" / "config.json").is_file(), "without a run's museg_config.yaml it may be a person's"
    shutil.rmtree(tmp_path / "model.old")
    (out_dir / "museg_config.yaml").touch()
    (out_dir / "README.md").write_text("mine")
    (tmp_path / "linked").symlink_to(out_dir)
    save_policy(policy, tiny_model_dir, out_dir)
    assert [path.name for path in (tmp_path / "model.old").iterdir()] == ["README.md"]
    save_policy(policy, tiny_model_dir, tmp_path / "linked")
    assert (tmp_path / "linked.old").is_symlink() and (out_dir / "config.json").is_file()


def test_processor_files_as_qwen3_vl_is_published_are_read_and_go_along(tiny_qwen3_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_qwen3_dir, tmp_path / "published"))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    names = {"image_processor": "preprocessor_config.json", "video_processor": "video_preprocessor_config.json"}
    for part, name in names.items():
        (folder / name).write_text(json.dumps({**processor[part], "processor_class": "Qwen3VLProcessor"}))
    save_policy(load_policy(resolve_model_path(str(folder)), torch.float32), folder, tmp_path / "saved")
    for name in names.values():
        assert (tmp_path / "saved" / name).read_text() == (folder / name).read_text()
    expected = load_vision_spec(tiny_qwen3_dir)
    assert load_vision_spec(folder) == load_vision_spec(resolve_model_path(str(tmp_path / "saved"))) == expected


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
