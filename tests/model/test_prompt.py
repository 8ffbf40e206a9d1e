"""Chat prompts: format, and no way for a question to add special tokens."""

from pathlib import Path

import numpy as np
import pytest

from museg_ray.model.prompt import (
    chat_prompt_ids,
    expand_video,
    prompt_length,
    response_opening,
    without_outer_marks,
)
from museg_ray.model.qwen_vl import load_tokenizer, load_vision_spec
from museg_ray.types import Clip
from tests.model.timed_prompt import expand_timed_video

QWEN_SYSTEM_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def test_a_prompt_equals_the_chat_format_encoded_as_a_whole(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    question = "  When is the red circle visible?\nAnswer in seconds. "
    text = f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    assert chat_prompt_ids(tokenizer, question) == tokenizer.encode(text, add_special_tokens=False)


def test_the_system_turn_comes_from_the_tokenizer_template(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    tokenizer.chat_template = QWEN_SYSTEM_TEMPLATE
    text = tokenizer.decode(chat_prompt_ids(tokenizer, "When?"))
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("token", ["<|video_pad|>", "<|im_end|>", "<|vision_start|>", "<|endoftext|>"])
def test_special_tokens_in_a_question_stay_plain_text(tiny_model_dir: Path, token: str) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    plain, tricky = chat_prompt_ids(tokenizer, "When?"), chat_prompt_ids(tokenizer, f"When {token}?")
    special = set(tokenizer.all_special_ids)
    assert [i for i in tricky if i in special] == [i for i in plain if i in special]
    assert f"When {token}?" in tokenizer.decode(tricky)


def test_encoding_a_question_does_not_change_how_the_tokenizer_reads_special_tokens(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    chat_prompt_ids(tokenizer, "When?")
    assert len(tokenizer.encode("<|video_pad|>", add_special_tokens=False)) == 1


def test_the_placeholder_is_repeated_once_for_each_video_token(tiny_model_dir: Path) -> None:
    tokenizer, spec = load_tokenizer(tiny_model_dir), load_vision_spec(tiny_model_dir)
    ids = chat_prompt_ids(tokenizer, "When?")
    expanded = expand_video(ids, 48, spec)
    assert expanded.count(spec.video_token_id) == 48 and len(expanded) == len(ids) + 47
    assert [i for i in expanded if i != spec.video_token_id] == [i for i in ids if i != spec.video_token_id]


def test_a_timed_prompt_is_in_the_format_that_the_model_was_trained_on(tiny_qwen3_dir: Path) -> None:
    tokenizer, spec = load_tokenizer(tiny_qwen3_dir), load_vision_spec(tiny_qwen3_dir)
    times_s = np.array([0.0, 0.5, 1.3, 2.0, 9.9, 10.3], dtype=np.float32)  # of a variable frame rate
    ids = expand_timed_video(tokenizer, chat_prompt_ids(tokenizer, "When?"), (3, 2, 4), times_s, spec)
    patch = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    video = f"<0.2 seconds>{patch}<1.6 seconds>{patch}<10.1 seconds>{patch}"
    assert tokenizer.decode(ids) == f"<|im_start|>user\n{video}When?<|im_end|>\n<|im_start|>assistant\n"


def test_think_tags_of_a_question_are_the_tokens_that_the_model_thinks_in(tiny_qwen3_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_qwen3_dir)
    ids = chat_prompt_ids(tokenizer, "Answer in <think></think> tags.")
    assert set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"])) <= set(ids)


def test_a_placeholder_without_marks_is_our_bug(tiny_qwen3_dir: Path) -> None:
    spec = load_vision_spec(tiny_qwen3_dir)
    with pytest.raises(AssertionError, match="no marks"):
        without_outer_marks([5, spec.video_token_id, 6], spec)


def test_the_length_of_a_prompt_is_known_before_it_is_expanded(tiny_model_dir: Path, tiny_qwen3_dir: Path) -> None:
    for folder in (tiny_model_dir, tiny_qwen3_dir):
        tokenizer, spec = load_tokenizer(folder), load_vision_spec(folder)
        side, prompt_ids = spec.size_multiple, chat_prompt_ids(tokenizer, "When?")
        times_s = np.array([0.0, 0.5, 9.7, 10.4, 99.9, 100.2], np.float32)
        clip = Clip("k", "v.mp4", np.zeros((6, 2 * side, 3 * side, 3), np.uint8), times_s, 101.0)
        grid = (3, 2 * spec.merge_size, 3 * spec.merge_size)
        if spec.writes_times:
            expanded = expand_timed_video(tokenizer, prompt_ids, grid, times_s, spec)
        else:
            expanded = expand_video(prompt_ids, spec.num_video_tokens(grid), spec)
        assert sum(prompt_length(tokenizer, prompt_ids, clip, spec)) == len(expanded)


@pytest.mark.parametrize(
    ("tail", "opening"),
    [("", ""), ("{{ '<think>\\n' }}", "<think>\n"), ("<think>\n\n</think>\n\n", ""), ("ok <think>", "<think>")],
)
def test_a_think_tag_that_the_template_opens_begins_the_response(tiny_model_dir: Path, tail: str, opening: str) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    tokenizer.chat_template = QWEN_SYSTEM_TEMPLATE + tail
    assert response_opening(tokenizer) == opening
