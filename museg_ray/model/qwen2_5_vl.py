"""The family Qwen2.5-VL."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_window_index

from museg_ray.model.family import Grids, TowerStates, VideoFeatures


class Qwen25VL:
    """See `Family`."""

    model_type = "qwen2_5_vl"

    def tower(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> TowerStates:
        return (self._visual(model, patches, grids).last_hidden_state,)

    def merge(self, model: PreTrainedModel, states: TowerStates, grids: Grids) -> VideoFeatures:
        visual = model.model.visual
        # The tower works in the order of its attention windows; merged tokens go back to the order of the frames.
        window_index, _ = get_vision_window_index(
            grids, visual.spatial_merge_size, visual.window_size, visual.patch_size
        )
        merged = visual.merger(states[0])
        return VideoFeatures(merged[torch.argsort(window_index).to(merged.device)])

    def features(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> VideoFeatures:
        return VideoFeatures(self._visual(model, patches, grids).pooler_output)

    def language(
        self,
        model: PreTrainedModel,
        embeddings: torch.Tensor,
        position_ids: torch.Tensor,
        video_rows: torch.Tensor,
        features: VideoFeatures,
        **attention: Any,
    ) -> torch.Tensor:
        return model.model.language_model(
            inputs_embeds=embeddings[None], position_ids=position_ids[:, None], use_cache=False, **attention
        ).last_hidden_state[0]

    def mergers(self, model: PreTrainedModel) -> Iterator[nn.Module]:
        yield model.model.visual.merger

    @staticmethod
    def _visual(model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> Any:
        visual = model.model.visual
        return visual(patches.to(visual.dtype), grid_thw=grids.to(patches.device))
