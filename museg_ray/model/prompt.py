"""The chat prompt of one query as token ids, with room for its video."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from museg_ray.model.qwen_vl import THINK_TOKENS, VisionSpec
from museg_ray.types import Clip

_USER_TEXT = "\ue000"
"""Stands for the user's text while the chat template is rendered: a private-use character that no template contains."""


def chat_prompt_ids(tokenizer: PreTrainedTokenizerBase, user_text: str) -> list[int]:
    """Ids of the model's chat format: one user turn with a video and `user_text`, then the opening of the answer.

    The video is ONE placeholder id between its marks (see `expand_video`). The system turn is there when the
    tokenizer's chat template puts it there (Qwen2.5-VL's does, museg-tiny's does not).

    The user's text is encoded apart from the template, with special tokens read as plain characters: a question that
    contains `<|video_pad|>` must not add a video. Special tokens surround it, so this gives the same ids as encoding
    the whole.
    """
    before, after = _around(tokenizer)
    user_ids = tokenizer.encode(user_text, add_special_tokens=False, split_special_tokens=True)
    return [*before, *user_ids, *after]


def response_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """`<think>` and what follows it where the chat template opens it itself (Qwen3-VL-Thinking's): the response goes on
    from there, and its text is taken to begin with it. Else empty."""
    _, after = _rendered_around(tokenizer)
    _, opened, rest = after.rpartition(THINK_TOKENS[0])
    return opened + rest if opened and THINK_TOKENS[1] not in rest else ""


@lru_cache(maxsize=4)
def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids before and after the user's text."""
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in _rendered_around(tokenizer))
    return before, after


def _rendered_around(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    content = [{"type": "video"}, {"type": "text", "text": _USER_TEXT}]
    messages = [{"role": "user", "content": content}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts = rendered.split(_USER_TEXT)
    assert len(parts) == 2, f"the chat template must render the user's text once, not {len(parts) - 1} times"
    return parts[0], parts[1]


def expand_video(prompt_ids: Sequence[int], num_video_tokens: int, spec: VisionSpec) -> list[int]:
    """Repeat the prompt's one video placeholder `num_video_tokens` times, as the engine does for Qwen2.5-VL."""
    assert not spec.writes_times, "the engine alone writes times into prompts"
    assert list(prompt_ids).count(spec.video_token_id) == 1, "a prompt holds one video placeholder before expansion"
    at = list(prompt_ids).index(spec.video_token_id)
    return [*prompt_ids[:at], *[spec.video_token_id] * num_video_tokens, *prompt_ids[at + 1 :]]


def prompt_length(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], clip: Clip, spec: VisionSpec
) -> tuple[int, int]:
    """Tokens of a prompt as the engine expands it: of its text, and of its video with the times that are written."""
    num_frames, height, width, _ = clip.frames.shape
    grid = (num_frames // spec.temporal_patch_size, height // spec.patch_size, width // spec.patch_size)
    if not spec.writes_times:
        return len(prompt_ids) - 1, spec.num_video_tokens(grid)
    # Each temporal patch brings the mean time of its frames and two marks, in the place of the prompt's own two.
    times_s = clip.times_s.astype(np.float64).reshape(grid[0], -1)[:, [0, -1]].mean(axis=1)  # [T / 2]
    written = [tokenizer.encode(f"<{time_s:.1f} seconds>", add_special_tokens=False) for time_s in times_s]
    return len(prompt_ids) - 3, spec.num_video_tokens(grid) + sum(len(ids) + 2 for ids in written)


def without_outer_marks(prompt_ids: Sequence[int], spec: VisionSpec) -> list[int]:
    """A prompt without `<|vision_start|>` and `<|vision_end|>` around its one video placeholder.

    Each temporal patch of Qwen3-VL brings marks of its own. The model's original processor puts the patches in the
    place of all three tokens, and so the model was trained; transformers from 5.10 on, and vLLM with it, replace the
    placeholder alone and leave a second pair around the whole.
    """
    assert list(prompt_ids).count(spec.video_token_id) == 1, "a prompt holds one video placeholder before expansion"
    at = list(prompt_ids).index(spec.video_token_id)
    around = list(prompt_ids[at - 1 : at + 2])
    assert around == [spec.vision_start_id, spec.video_token_id, spec.vision_end_id], f"no marks around it: {around}"
    return [*prompt_ids[: at - 1], spec.video_token_id, *prompt_ids[at + 2 :]]
