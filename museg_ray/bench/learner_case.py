"""What `museg bench learner` computes in each of its ways: a made-up group, its loss, and the model."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from museg_ray.algo.aggregation import token_weights
from museg_ray.algo.loss import LossTokens, grpo_loss
from museg_ray.config.learning import AlgoConfig
from museg_ray.model.packing import Row
from museg_ray.model.positions import prompt_positions
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, VisionSpec, load_policy

FRAME_PATCHES = (12, 10)
"""Patches of a frame, high and wide: 30 video tokens a step of two frames."""
TOWER_FRAME_PATCHES = (6, 10)
"""Likewise where the tower is measured alone, on twice as many frames: of MUSEG's 448 and 16:9."""
TEXT_TOKENS = (20, 80)
"""Of the prompt, before and after the video."""
NUM_WORDS = 256
"""Ids that responses draw from: museg-tiny's vocabulary without its special tokens."""
CONFIG_3B = PACKAGED_MODEL_DIR.with_name("qwen2_5_vl_3b.json")
"""The sizes of Qwen2.5-VL-3B, from its published configuration, with the placeholder ids of museg-tiny."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a group is."""

    video_steps: int
    """Pairs of frames."""
    group_size: int = 8
    completion_tokens: tuple[int, int] = (200, 400)
    """Lengths are drawn evenly between: 300 on average."""
    frame_patches: tuple[int, int] = FRAME_PATCHES

    @property
    def video_tokens(self) -> int:
        return self.video_steps * int(np.prod(self.frame_patches)) // 4


@dataclass(frozen=True, slots=True)
class Group:
    """A made-up group of N completion tokens."""

    row: Row
    grid: tuple[int, int, int]
    patches: torch.Tensor  # [patches, C]
    advantages: torch.Tensor  # [N]
    weights: torch.Tensor  # [N]
    responses: torch.Tensor  # [N] which one each is of
    reference_gaps: torch.Tensor  # [N] log-probs of the reference policy, less those of the policy


def make_group(shape: Shape, spec: VisionSpec, device: torch.device) -> Group:
    """The same for the same arguments."""
    rng = np.random.default_rng(0)
    grid = (shape.video_steps, *shape.frame_patches)
    before, after = TEXT_TOKENS
    prompt = [*[10] * before, *[spec.video_token_id] * spec.num_video_tokens(grid), *[11] * after]
    lengths = rng.integers(*shape.completion_tokens, shape.group_size, endpoint=True)
    completions = [rng.integers(0, NUM_WORDS, length).tolist() for length in lengths]
    (weights,) = token_weights("sequence", [lengths], shape.completion_tokens[1])

    def tensor(values: Any) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.float32).to(device)

    patch_values = 3 * spec.temporal_patch_size * spec.patch_size**2
    return Group(
        row=Row(prompt, prompt_positions(prompt, grid, 1.0, spec), completions),
        grid=grid,
        patches=tensor(rng.normal(size=(int(np.prod(grid)), patch_values))),
        advantages=tensor(np.repeat(rng.normal(size=shape.group_size), lengths)),
        weights=tensor(np.repeat(weights, lengths)),
        responses=tensor(np.repeat(range(shape.group_size), lengths)).long(),
        reference_gaps=tensor(rng.normal(scale=0.1, size=int(lengths.sum()))),
    )


def group_loss(logprobs: torch.Tensor, group: Group) -> torch.Tensor:
    """The loss of the paper's defaults in the first update of a rollout. `logprobs` [N]."""
    old = logprobs.detach()
    of_each = (group.advantages, group.weights, group.responses)
    loss, _ = grpo_loss(LossTokens(logprobs, old, old, old + group.reference_gaps, None, *of_each), AlgoConfig())
    return loss


def load_model(name: str, device: torch.device) -> Any:
    """`tiny`: museg-tiny in float32. `3b`: Qwen2.5-VL-3B's sizes with random bfloat16 weights, and gradient
    checkpointing as models of that size are trained: row by row a group would not fit otherwise. Nothing is downloaded.

    Both cut frames into the same patches and have museg-tiny's placeholder ids.
    """
    model: Any = build_3b(device) if name == "3b" else load_policy(PACKAGED_MODEL_DIR, torch.float32)
    if name == "3b":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(device).train()  # gradient checkpointing acts in training mode only; there is no dropout


def build_3b(device: torch.device, **smaller: dict[str, Any]) -> Any:
    """A model of the 3B sizes. `smaller`: other values for some of `text_config` and `vision_config`, for tests."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    sizes = json.loads(CONFIG_3B.read_text(encoding="utf-8"))
    parts = {part: sizes.pop(part) | smaller.get(part, {}) for part in ("text_config", "vision_config")}
    config = Qwen2_5_VLConfig(**parts, **sizes)
    torch.manual_seed(0)
    with device:  # 3.75 billion random numbers are slow to draw on a CPU
        return Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
