"""museg-tiny: the architecture of Qwen2.5-VL at about 1.3 M parameters, with a tokenizer and processor of its own.

Same classes, special tokens and chat format as the real model, so that the rest of the system cannot tell them apart.
The packaged folder defines it; here are its weights before any training, which `warm_start.py` trains. In its files

* the tokenizer is a byte-level BPE of the demo's prompts and responses, with digits as tokens of their own, as Qwen's
* `initializer_range` is 0.06: Qwen's 0.02 leaves the video features of so narrow a model almost constant, and it then
  learns without looking
* `tokens_per_second` is 1, one position a second: each word of a scan is then equally far from its frames
* the processor's frames have 56 x 56 to 84 x 56 pixels
"""

import shutil
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR

TEXT_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json")
"""Of the packaged folder: what a model has beside its weights and configuration."""


def build_model(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random float32 weights, the same for the same seed."""
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(PACKAGED_MODEL_DIR)).float()


def save_tiny_model(model: Qwen2_5_VLForConditionalGeneration, out_dir: Path) -> None:
    """Write a Hugging Face folder that stock transformers and stock vLLM load."""
    model.save_pretrained(out_dir)
    for name in TEXT_FILES:
        shutil.copyfile(PACKAGED_MODEL_DIR / name, out_dir / name)
