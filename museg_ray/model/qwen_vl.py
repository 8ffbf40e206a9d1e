"""Model folders: find, check, load and save a Qwen2.5-VL or Qwen3-VL with its tokenizer and processor files."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
)

import museg_ray
from museg_ray.config.load import MODEL_CONFIG_FILE
from museg_ray.config.schema import VideoConfig
from museg_ray.errors import ConfigError, ModelError
from museg_ray.files import free_path, partial_path, remove_files

PACKAGED_MODEL = "museg-tiny"
PACKAGED_MODEL_DIR = Path(museg_ray.__file__).parent / "assets" / PACKAGED_MODEL
END_TOKEN, VIDEO_TOKEN = "<|im_end|>", "<|video_pad|>"
THINK_TOKENS = ("<think>", "</think>")
"""Tokens of their own in Qwen3-VL's vocabulary, plain text in Qwen2.5-VL's; every response holds them."""
FORBIDDEN_LOGIT_BIAS = -100.0
"""Added to the logits of forbidden tokens, by the engine at sampling and by the learner. It is the lowest value that
vLLM's `logit_bias` accepts; the learner adds the same and not minus infinity, so that both distributions are equal
and the log-prob of a forbidden token stays finite."""

_VIDEO_PROCESSORS = {"qwen2_5_vl": Qwen2VLVideoProcessor, "qwen3_vl": Qwen3VLVideoProcessor}
_NEEDED_FILES: dict[str, list[tuple[str, ...]]] = {
    "tokenizer": [("tokenizer.json",), ("vocab.json", "merges.txt")],
    "processor": [("processor_config.json",), ("preprocessor_config.json",)],
}
"""Of a model folder: all of one of these."""
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
_WEIGHT_FILE = re.compile(r"model(-[\d]+-of-[\d]+)?\.safetensors(\.index\.json)?|(generation_)?config\.json")
"""What `save_pretrained` writes."""


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """How frames become patches, tokens and positions in one model."""

    patch_size: int
    """Pixels, square."""
    merge_size: int
    """Patches a side that merge into one token."""
    temporal_patch_size: int
    """Frames in one patch."""
    tokens_per_second: float | None
    """Steps of the temporal position a second; None where the prompt holds the times as text (Qwen3-VL)."""
    video_token_id: int
    vision_start_id: int
    vision_end_id: int
    """Marks around the video, or around each of its temporal patches where the prompt holds times."""
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    """Per RGB channel, for pixels scaled to 0 .. 1."""

    @property
    def writes_times(self) -> bool:
        """True where the prompt holds the time of each temporal patch as text, and positions do not depend on it."""
        return self.tokens_per_second is None

    @property
    def pair_tokens(self) -> int:
        """Most tokens that a temporal patch takes beside its pixels, in 2.7 hours of video: a time and two marks."""
        return 11 if self.writes_times else 0

    @property
    def size_multiple(self) -> int:
        """Pixels of one token's side: height and width of frames are multiples of it."""
        return self.patch_size * self.merge_size

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
            "it comes with the package: install museg_ray anew"
            if path == PACKAGED_MODEL
            else f"set model.path to the folder of a Qwen2.5-VL or Qwen3-VL, or to {PACKAGED_MODEL}"
        )
        raise ModelError(f"model folder {folder} does not exist; {advice}.")
    _check_config(folder)
    _check_weights(folder)
    for what, alternatives in _NEEDED_FILES.items():
        if not any(all((folder / name).is_file() for name in names) for names in alternatives):
            wanted = " or ".join(" with ".join(names) for names in alternatives)
            raise ModelError(
                f"model folder {folder} has no {what} ({wanted}); copy the {what} files of the model there."
            )
    return folder


def _read_field(file: Path, name: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))[name]
    except (ValueError, RecursionError, TypeError, KeyError) as error:  # not UTF-8 is a ValueError too
        raise ModelError(f"{file} is not a JSON object with {name!r} ({error}); download the file again.") from error


def _check_config(folder: Path) -> None:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"model folder {folder} has no config.json; is it a Hugging Face model folder?")
    model_type = _read_field(file, "model_type")
    if model_type not in _VIDEO_PROCESSORS:
        accepted = " or ".join(map(repr, _VIDEO_PROCESSORS))
        raise ModelError(f"{file} says model_type {model_type!r}; museg_ray trains {accepted} (Qwen2.5-VL, Qwen3-VL).")


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        expected = sorted(set(_read_field(index, "weight_map").values()))
        missing = [name for name in expected if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"model folder {folder} lacks {missing[0]} ({len(missing)} of {len(expected)} weight files that "
                f"{index.name} names are missing); download them again."
            )
    elif not any(folder.glob("*.safetensors")):
        raise ModelError(f"model folder {folder} has no weights (*.safetensors); download or export them there.")


def load_policy(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its weights in `dtype`, in evaluation mode.

    Raises:
        ModelError: the weights cannot be read or are not all there (transformers only warns, and trains noise).
    """
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
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
        ModelError: it cannot be loaded, lacks the chat template or the end token, or is another model's.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer in {path} could not be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer in {path} has no chat template; copy chat_template.jinja of the model there.")
    if END_TOKEN not in tokenizer.get_vocab():
        raise ModelError(f"the tokenizer in {path} does not know {END_TOKEN}; it is not the tokenizer of a Qwen-VL.")
    _check_fits(tokenizer, path)
    return tokenizer


def _check_fits(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Another model's tokenizer gives tokens that mean something else to this one, and nothing would say so: a video's
    place would be taken for a word.

    Raises:
        ModelError
    """
    config, vocabulary = AutoConfig.from_pretrained(path), tokenizer.get_vocab()
    found, expected = vocabulary.get(VIDEO_TOKEN), config.video_token_id
    if found != expected:
        raise ModelError(
            f"{VIDEO_TOKEN} is token {found} of the tokenizer in {path}, and {expected} by its config.json: they are "
            "of two models. Copy the tokenizer files of the model there."
        )
    if (largest := max(vocabulary.values())) >= (size := config.get_text_config().vocab_size):
        raise ModelError(
            f"The tokenizer in {path} has tokens up to {largest}, and the model's vocabulary ends at {size - 1}: they "
            "are of two models. Copy the tokenizer files of the model there."
        )


def load_vision_spec(path: Path) -> VisionSpec:
    """Read from the model's config and its video processor's config."""
    config = AutoConfig.from_pretrained(path)
    processor = _VIDEO_PROCESSORS[config.model_type].from_pretrained(path)
    vision = config.vision_config
    return VisionSpec(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        tokens_per_second=getattr(vision, "tokens_per_second", None),
        video_token_id=config.video_token_id,
        vision_start_id=config.vision_start_token_id,
        vision_end_id=config.vision_end_token_id,
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
    )


def context_limit(model_dir: Path) -> int:
    """Tokens of the longest sequence that a model was built for."""
    return int(AutoConfig.from_pretrained(model_dir).get_text_config().max_position_embeddings)


def vocab_size(model_dir: Path) -> int:
    """Rows of a model's output head."""
    return int(AutoConfig.from_pretrained(model_dir).get_text_config().vocab_size)


def check_frames_fit(video: VideoConfig, model_dir: Path) -> None:
    """Check that prepared frames have sizes that the model can cut into tokens, and are counted as it counts them.

    Raises:
        ConfigError: they are not.
    """
    spec = load_vision_spec(model_dir)
    if video.size_multiple != spec.size_multiple:
        raise ConfigError(
            f"video.size_multiple is {video.size_multiple}, but the model in {model_dir} takes frames whose height and "
            f"width are multiples of {spec.size_multiple} (patches of {spec.patch_size} pixels, {spec.merge_size} a "
            f"side to a token); set video.size_multiple={spec.size_multiple}."
        )
    if video.pair_tokens != spec.pair_tokens:
        raise ConfigError(
            f"video.pair_tokens is {video.pair_tokens}, but the model in {model_dir} takes up to {spec.pair_tokens} "
            f"tokens a frame pair beside its pixels; set video.pair_tokens={spec.pair_tokens}."
        )


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that closes a response."""
    return int(tokenizer.convert_tokens_to_ids(END_TOKEN))


def forbidden_token_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """Ids that no response may contain, sorted: every special or added token but the end token and those of
    `THINK_TOKENS`, and the rows of the output head that no token has (the vocabulary is padded to `vocab_size`).

    A sampled vision placeholder has no meaning and would be taken for a video by stock models.
    """
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    padding = range(len(tokenizer), vocab_size)
    allowed = {tokenizer.get_vocab().get(token) for token in (END_TOKEN, *THINK_TOKENS)}
    return sorted((special | set(padding)) - allowed)


def save_policy(
    model: PreTrainedModel, source_dir: Path, out_dir: Path, weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write a Hugging Face folder that stock transformers and stock vLLM load. `out_dir` is replaced as a whole: a
    crash leaves the old folder or the new one, never a mixture.

    Args:
        model: names and shapes of what to write.
        source_dir: model folder whose tokenizer and processor files go along.
        weights: tensors by Hugging Face name; the model's own when None (ZeRO 3 leaves empty parameters in it).
    """
    partial = partial_path(out_dir)
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial, state_dict=weights)
        for name in _COMPANION_FILES:
            if (source_dir / name).is_file():
                shutil.copyfile(source_dir / name, partial / name)
        _replace_folder(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_model_file(name: str) -> bool:
    """True of what `save_policy` writes, and of what a run puts beside it."""
    return name in (*_COMPANION_FILES, MODEL_CONFIG_FILE) or _WEIGHT_FILE.fullmatch(name) is not None


def _replace_folder(new: Path, target: Path) -> None:
    """One that a run has made is replaced, but for what a person has put there; another one is a person's, and kept."""
    replaced = partial_path(target)
    is_own = (target / MODEL_CONFIG_FILE).is_file() and not target.is_symlink()
    if os.path.lexists(target):
        target.rename(replaced)
    new.rename(target)
    if is_own:
        remove_files(replaced, is_model_file)
    if os.path.lexists(replaced):
        replaced.rename(free_path(target.with_name(target.name + ".old")))
