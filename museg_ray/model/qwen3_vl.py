"""The family Qwen3-VL: DeepStack, and times as text in the prompt."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from museg_ray.model.family import Grids, TowerStates, VideoFeatures


class Qwen3VL:
    """See `Family`."""

    model_type = "qwen3_vl"

    def tower(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> TowerStates:
        """One state for each of `mergers`: those of the inner layers, in their order, and the last one."""
        states: list[torch.Tensor] = []
        # The tower does not return its inner layers' states; it hands them to the mergers.
        hooks = [merger.register_forward_pre_hook(lambda _, args: states.append(args[0])) for merger in _mergers(model)]
        try:
            self._visual(model, patches, grids)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(states)

    def merge(self, model: PreTrainedModel, states: TowerStates, grids: Grids) -> VideoFeatures:
        *deepstack, tokens = (merger(state) for merger, state in zip(_mergers(model), states, strict=True))
        return VideoFeatures(tokens, tuple(deepstack))

    def features(self, model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> VideoFeatures:
        output = self._visual(model, patches, grids)
        return VideoFeatures(output.pooler_output, tuple(output.deepstack_features))

    def language(
        self,
        model: PreTrainedModel,
        embeddings: torch.Tensor,
        position_ids: torch.Tensor,
        video_rows: torch.Tensor,
        features: VideoFeatures,
        **attention: Any,
    ) -> torch.Tensor:
        is_video = torch.zeros(len(embeddings), dtype=torch.bool, device=embeddings.device)  # [L]
        return model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=position_ids[:, None],
            visual_pos_masks=is_video.index_fill(0, video_rows, True)[None],
            deepstack_visual_embeds=list(features.deepstack),
            use_cache=False,
            **attention,
        ).last_hidden_state[0]

    def mergers(self, model: PreTrainedModel) -> Iterator[nn.Module]:
        yield from _mergers(model)

    @staticmethod
    def _visual(model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> Any:
        visual = model.model.visual
        return visual(patches.to(visual.dtype), grid_thw=grids.to(patches.device))


def _mergers(model: PreTrainedModel) -> list[nn.Module]:
    """In the order in which the tower calls them: those of its inner layers, then the last one."""
    visual = model.model.visual
    return [*visual.deepstack_merger_list, visual.merger]
