"""The family Qwen2.5-VL."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import get_max_seqlen
from transformers.vision_utils import get_vision_window_index

from museg_ray.model.family import Family, Grids, TowerStates, VideoFeatures


class Qwen25VL(Family):
    """See `Family`."""

    def tower(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> TowerStates:
        return (self._visual(model, patches, grids).last_hidden_state,)

    def merge(self, model: PreTrainedModel, states: TowerStates, grids: Grids) -> VideoFeatures:
        # The tower works in the order of its attention windows; merged tokens go back to the order of the frames.
        window_index, _ = _windows(model.model.visual, grids)
        merged = model.model.visual.merger(states[0])
        return VideoFeatures(merged[torch.argsort(window_index).to(merged.device)])

    def features(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> VideoFeatures:
        return VideoFeatures(self._visual(model, patches, grids).pooler_output)

    def mergers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        return [model.model.visual.merger]

    def _layout(self, visual: Any, grids: Grids) -> dict[str, Any]:
        index, bounds = _windows(visual, grids)
        longest = get_max_seqlen(bounds, visual.config)
        windows = {"window_index": index, "cu_window_seqlens": bounds, "max_window_seqlen": longest}
        return super()._layout(visual, grids) | windows


def _windows(visual: Any, grids: Grids) -> tuple[torch.Tensor, torch.Tensor]:
    """[V] the video tokens in the tower's order, and [windows + 1] the first patch of each window."""
    return get_vision_window_index(grids, visual.spatial_merge_size, visual.window_size, visual.patch_size)
