"""The family Qwen3-VL: DeepStack, and times as text in the prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from museg_ray.model.family import Family, Grids, TowerStates, VideoFeatures


class Qwen3VL(Family):
    """See `Family`."""

    def tower(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> TowerStates:
        """One state for each of `mergers`: those of the inner layers, in their order, and the last one."""
        states: list[torch.Tensor] = []
        # The tower does not return its inner layers' states; it hands them to the mergers.
        hooks = [
            merger.register_forward_pre_hook(lambda _, args: states.append(args[0])) for merger in self.mergers(model)
        ]
        try:
            self._visual(model, patches, grids)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(states)

    def merge(self, model: PreTrainedModel, states: TowerStates, grids: Grids) -> VideoFeatures:
        *deepstack, tokens = (merger(state) for merger, state in zip(self.mergers(model), states, strict=True))
        return VideoFeatures(tokens, tuple(deepstack))

    def features(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> VideoFeatures:
        output = self._visual(model, patches, grids)
        return VideoFeatures(output.pooler_output, tuple(output.deepstack_features))

    def mergers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """Those of its inner layers, then the last one."""
        visual = model.model.visual
        return [*visual.deepstack_merger_list, visual.merger]

    def _deepstack(self, length: int, video_rows: torch.Tensor, features: VideoFeatures) -> dict[str, Any]:
        is_video = torch.zeros(length, dtype=torch.bool, device=video_rows.device)  # [L]
        mask = is_video.index_fill(0, video_rows, True)[None]
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(features.deepstack)}

    def _layout(self, visual: Any, grids: Grids) -> dict[str, Any]:
        table = visual.num_grid_per_side, visual.interpolation_mode, visual.interpolation_align_corners
        indices, weights = get_vision_interpolation_indices_and_weights(grids, *table, visual.spatial_merge_size)
        return super()._layout(visual, grids) | {"interp_indices": indices, "interp_weights": weights}
