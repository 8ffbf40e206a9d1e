"""What the engine makes of a Qwen3-VL prompt, computed here: vLLM's own ids are compared with it."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from museg_ray.model.prompt import without_outer_marks
from museg_ray.model.qwen_vl import VisionSpec
from museg_ray.types import FloatArray


def expand_timed_video(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    grid: tuple[int, int, int],
    times_s: FloatArray,
    spec: VisionSpec,
) -> list[int]:
    """Replace the prompt's one video by its temporal patches, each after its time, as the engine does for Qwen3-VL:
    `<1.3 seconds><|vision_start|><|video_pad|>...<|vision_end|>`.

    Args:
        grid: patches (t, h, w) of the video.
        times_s: [T] of its frames; a patch is written with the mean of its first and its last frame's time.
    """
    bare = without_outer_marks(prompt_ids, spec)
    at = bare.index(spec.video_token_id)
    pads = [spec.video_token_id] * (spec.num_video_tokens(grid) // grid[0])
    video: list[int] = []
    for frames in np.split(times_s.astype(np.float64), grid[0]):
        time = tokenizer.encode(f"<{(frames[0] + frames[-1]) / 2:.1f} seconds>", add_special_tokens=False)
        video += [*time, spec.vision_start_id, *pads, spec.vision_end_id]
    return [*bare[:at], *video, *bare[at + 1 :]]
