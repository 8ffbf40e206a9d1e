"""Model folders: find, check, load and save a Qwen2.5-VL with its tokenizer and processor files."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLVideoProcessor,
)

import museg_ray
from museg_ray.errors import ModelError

PACKAGED_MODEL = "museg-tiny"
PACKAGED_MODEL_DIR = Path(museg_ray.__file__).parent / "assets" / PACKAGED_MODEL
END_TOKEN = "<|im_end|>"
FORBIDDEN_LOGIT_BIAS = -100.0
"""Added to the logits of forbidden tokens, by the engine at sampling and by the learner. It is the lowest value that
vLLM's `logit_bias` accepts; the learner adds the same and not minus infinity, so that both distributions are equal
and the log-prob of a forbidden token stays finite."""

_MODEL_TYPE = "qwen2_5_vl"
_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_PROCESSOR_FILES = (("processor_config.json",), ("preprocessor_config.json",))
_COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""What tokenizers and processors read from a model folder; `save_policy` copies those that the source has."""


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """How frames become patches, tokens and positions in one model."""

    patch_size: int
    """Pixels, square."""
    merge_size: int
    """Patches a side that merge into one token."""
    temporal_patch_size: int
    """Frames in one patch."""
    tokens_per_second: float
    """Steps of the temporal position a second."""
    video_token_id: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    """Per RGB channel, for pixels scaled to 0 .. 1."""

    def num_video_tokens(self, grid: tuple[int, int, int]) -> int:
        """Tokens of a video with `grid` = (t, h, w) patches."""
        t, h, w = grid
        return t * (h // self.merge_size) * (w // self.merge_size)


def resolve_model_path(path: str) -> Path:
    """The folder of a model: `museg-tiny` is the one in the package, anything else is a folder.

    Raises:
        ModelError: the folder, its config, weights, tokenizer or processor files are missing.
    """
    folder = PACKAGED_MODEL_DIR if path == PACKAGED_MODEL else Path(path).expanduser().resolve()
    if not folder.is_dir():
        advice = (
            "build it with `museg demo --rebuild-model`"
            if path == PACKAGED_MODEL
            else f"set model.path to the folder of a Qwen2.5-VL or to {PACKAGED_MODEL}"
        )
        raise ModelError(f"model folder {folder} does not exist; {advice}.")
    _check_config(folder)
    _check_weights(folder)
    _check_one_of(folder, _TOKENIZER_FILES, "tokenizer")
    _check_one_of(folder, _PROCESSOR_FILES, "processor")
    return folder


def _check_config(folder: Path) -> None:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"model folder {folder} has no config.json; is it a Hugging Face model folder?")
    try:
        model_type = json.loads(file.read_text()).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ModelError(f"{file} is not a JSON object ({error}); download the file again.") from error
    if model_type != _MODEL_TYPE:
        raise ModelError(f"{file} says model_type {model_type!r}; museg_ray trains {_MODEL_TYPE!r} (Qwen2.5-VL).")


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        expected = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in expected if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"model folder {folder} lacks {missing[0]} ({len(missing)} of {len(expected)} weight files that "
                f"{index.name} names are missing); download them again."
            )
    elif not any(folder.glob("*.safetensors")):
        raise ModelError(f"model folder {folder} has no weights (*.safetensors); download or export them there.")


def _check_one_of(folder: Path, alternatives: tuple[tuple[str, ...], ...], what: str) -> None:
    if not any(all((folder / name).is_file() for name in names) for names in alternatives):
        wanted = " or ".join(" with ".join(names) for names in alternatives)
        raise ModelError(f"model folder {folder} has no {what} ({wanted}); copy the {what} files of the model there.")


def load_policy(path: Path, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """The model with its weights in `dtype`, in evaluation mode.

    SDPA is the attention that takes the packed group's own [L, L] mask.

    Raises:
        ModelError: the weights cannot be read or are not all there (transformers only warns, and trains noise).
    """
    try:
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the weights in {path} could not be loaded: {error}; download or export them again."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights in {path} lack {len(missing)} tensors, {missing[0]} the first; export them again."
        )
    return model


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ModelError: it cannot be loaded, or lacks the chat template or the end token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer in {path} could not be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer in {path} has no chat template; copy chat_template.jinja of the model there.")
    if END_TOKEN not in tokenizer.get_vocab():
        raise ModelError(f"the tokenizer in {path} does not know {END_TOKEN}; it is not the tokenizer of a Qwen2.5-VL.")
    return tokenizer


def load_vision_spec(path: Path) -> VisionSpec:
    """Read from the model's config and its video processor's config."""
    config = Qwen2_5_VLConfig.from_pretrained(path)
    processor = Qwen2VLVideoProcessor.from_pretrained(path)
    vision = config.vision_config
    return VisionSpec(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        tokens_per_second=vision.tokens_per_second,
        video_token_id=config.video_token_id,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
    )


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes a response."""
    return int(tokenizer.convert_tokens_to_ids(END_TOKEN))


def forbidden_token_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """Ids that no response may contain, sorted: every special or added token but the end token, and the rows of the
    output head that no token has (the vocabulary is padded to `vocab_size`).

    A sampled vision placeholder has no meaning and would be taken for a video by stock models.
    """
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    padding = range(len(tokenizer), vocab_size)
    return sorted((special | set(padding)) - {end_token_id(tokenizer)})


def save_policy(
    model: Qwen2_5_VLForConditionalGeneration,
    source_dir: Path,
    out_dir: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a Hugging Face folder that stock transformers and stock vLLM load. `out_dir` is replaced as a whole: a
    crash leaves the old folder or the new one, never a mixture.

    Args:
        model: names and shapes of what to write.
        source_dir: model folder whose tokenizer and processor files go along.
        weights: tensors by Hugging Face name; the model's own when None (ZeRO 3 leaves empty parameters in it).
    """
    partial = out_dir.with_name(out_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial, state_dict=weights)
        for name in _COMPANION_FILES:
            if (source_dir / name).is_file():
                shutil.copyfile(source_dir / name, partial / name)
        _replace_folder(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_folder(new: Path, target: Path) -> None:
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
