"""What differs between the model families: the one interface through which the learner computes with a model.

A family is a set of functions without state. They call the model's own submodules, never its whole forward: that one
looks for video placeholders in the completions too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids

Grids = torch.Tensor
"""[videos, 3] int64 on the CPU: patches (t, h, w) of each video."""
TowerStates = tuple[torch.Tensor, ...]
"""What the tower gives each of its mergers: [patches of all videos, width of the tower]. Qwen2.5-VL has one
merger, the published Qwen3-VL models have four."""


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """The video tokens of one or several videos, one after another (V in all)."""

    tokens: torch.Tensor  # [V, hidden], in place of the placeholders' embeddings
    deepstack: tuple[torch.Tensor, ...] = ()
    """[V, hidden] each: added to the hidden states after the language model's first layers (DeepStack, Qwen3-VL)."""


class Family(Protocol):
    """One family of vision-language models. `model` is its `...ForConditionalGeneration`."""

    def tower(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> TowerStates:
        """The vision tower up to its mergers. `patches` [patches, C] from `patchify`, videos one after another."""

    def merge(self, model: PreTrainedModel, states: TowerStates, grids: Grids) -> VideoFeatures:
        """The mergers, on what `tower` gave for the same grids."""

    def features(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> VideoFeatures:
        """Tower and mergers in one, with gradients through both."""

    def mergers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The modules between tower and language model, in the order in which the tower calls them; all else under
        `model.model.visual` is the tower."""

    def language(
        self,
        model: PreTrainedModel,
        embeddings: torch.Tensor,
        position_ids: torch.Tensor,
        video_rows: torch.Tensor,
        features: VideoFeatures,
        **attention: Any,
    ) -> torch.Tensor:
        """The language model without its output head.

        Args:
            embeddings: [L, hidden], the video's tokens already in place.
            position_ids: [3, L].
            video_rows: [V] rows of the sequence that are video tokens, ascending, in the order of `features`.
            attention: what the attention function of the model's configuration takes, handed through to it.

        Returns:
            [L, hidden] after the last norm.
        """
        return model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=position_ids[:, None],
            use_cache=False,
            **self._deepstack(len(embeddings), video_rows, features),
            **attention,
        ).last_hidden_state[0]

    def _deepstack(self, length: int, video_rows: torch.Tensor, features: VideoFeatures) -> dict[str, Any]:
        """What a language model of this family takes besides, for a sequence of `length`."""
        return {}

    def _visual(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> Any:
        visual = model.model.visual
        layout = self._layout(visual, grids).items()
        moved = {name: x.to(patches.device) if isinstance(x, torch.Tensor) else x for name, x in layout}
        return visual(patches.to(visual.dtype), grid_thw=grids, **moved)

    def _layout(self, visual: Any, grids: Grids) -> dict[str, Any]:
        """Where patches and windows are, once a pass and on the CPU, where the grids are: from grids on a GPU the
        tower would read each video's sizes back."""
        bounds, longest = get_vision_attention_seqlens(grids, visual.config)
        positions = get_vision_position_ids(grids, visual.spatial_merge_size)
        return {"cu_seqlens": bounds, "max_seqlen": longest, "position_ids": positions}


def family_of(model_type: str) -> Family:
    """The family of a model folder's `model_type`.

    Raises:
        KeyError: not a family of ours (`resolve_model_path` checks that).
    """
    from museg_ray.model.qwen2_5_vl import Qwen25VL
    from museg_ray.model.qwen3_vl import Qwen3VL

    families: dict[str, type[Family]] = {"qwen2_5_vl": Qwen25VL, "qwen3_vl": Qwen3VL}
    return families[model_type]()
