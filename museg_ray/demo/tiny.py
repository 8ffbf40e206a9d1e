"""museg-tiny: the architecture of Qwen2.5-VL at about 1.3 M parameters, with a tokenizer and processor of its own.

Same classes, special tokens and chat format as the real model, so that the rest of the system cannot tell them apart.
Digits are tokens of their own, as in Qwen's tokenizer. Weights start random; `warm_start.py` trains them.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

END_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"
SPECIAL_TOKENS = (
    PAD_TOKEN,
    "<|im_start|>",
    END_TOKEN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY_SIZE = 384
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 128, 4, 4, 2
VISION_HIDDEN_SIZE, VISION_DEPTH, VISION_HEADS = 96, 2, 4
INITIALIZER_RANGE = 0.06
"""Qwen's 0.02 leaves the video features of so narrow a model almost constant: it then learns without looking."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Iterable[str]) -> Qwen2TokenizerFast:
    """A byte-level BPE trained on `texts` (plain text without special tokens)."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE, initial_alphabet=alphabet, show_progress=False)
    )
    return Qwen2TokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        additional_special_tokens=list(SPECIAL_TOKENS),
        unk_token=None,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: Qwen2TokenizerFast) -> Qwen2_5_VLConfig:
    """The Qwen2.5-VL configuration at museg-tiny's widths; the vocabulary is padded to a multiple of 64."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    head_size = HIDDEN_SIZE // NUM_HEADS
    text_config = {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": HIDDEN_SIZE * 3,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [head_size // 8, head_size // 16 * 3, head_size // 16 * 3],
            "rope_theta": 10000.0,
        },
        "tie_word_embeddings": True,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": None,
        "eos_token_id": ids[END_TOKEN],
        "pad_token_id": ids[PAD_TOKEN],
    }
    vision_config = {
        "depth": VISION_DEPTH,
        "hidden_size": VISION_HIDDEN_SIZE,
        "intermediate_size": VISION_HIDDEN_SIZE * 2,
        "num_heads": VISION_HEADS,
        "out_hidden_size": HIDDEN_SIZE,
        "window_size": 56,
        "fullatt_block_indexes": [VISION_DEPTH - 1],
        "tokens_per_second": 1,  # one position a second: each word of a scan is then equally far from its frames
        "initializer_range": INITIALIZER_RANGE,
    }
    return Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=True,
    )


def build_model(tokenizer: Qwen2TokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random float32 weights, the same for the same seed."""
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(build_config(tokenizer)).float()


def build_processor(tokenizer: Qwen2TokenizerFast) -> Qwen2_5_VLProcessor:
    """The stock processor with museg-tiny's frame sizes (56 x 56 to 84 x 56 pixels)."""
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 84}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size), chat_template=CHAT_TEMPLATE
    )


def save_tiny_model(model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2TokenizerFast, out_dir: Path) -> None:
    """Write a Hugging Face folder that stock transformers and stock vLLM load."""
    model.save_pretrained(out_dir)
    build_processor(tokenizer).save_pretrained(out_dir)
