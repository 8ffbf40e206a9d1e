"""The policy as the learner sees it: log-probs of sampled tokens under the distribution they were sampled from."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from museg_ray.model.packing import Pack
from museg_ray.model.qwen_vl import FORBIDDEN_LOGIT_BIAS


class PolicyModel(nn.Module):
    """Wraps the Hugging Face model; `model` holds the weights under their Hugging Face names.

    Calls the vision tower, the language model and the output head itself and not the model's own forward: that one
    looks for video placeholders in the whole sequence, so one sampled `<|video_pad|>` would end a run with "Video
    features and video tokens do not match". Here features go to the prompt's placeholders only, and any id in a
    completion is embedded as a plain token, which is what the engine does when it decodes.
    """

    logit_bias: torch.Tensor  # [V] added to every logits row

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, forbidden_ids: Sequence[int], temperature: float
    ) -> None:
        """`forbidden_ids` and `temperature` must be those of the engine that sampled."""
        super().__init__()
        self.model = model
        self.temperature = temperature
        bias = torch.zeros(model.config.text_config.vocab_size)
        bias[list(forbidden_ids)] = FORBIDDEN_LOGIT_BIAS
        self.register_buffer("logit_bias", bias, persistent=False)

    def forward(self, pack: Pack, pixel_values: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Log-probs of the pack's completion tokens.

        Args:
            pixel_values: [t * h * w, C] patches of the group's video, from `patchify`.
            grid: (t, h, w) patches.

        Returns:
            [N] float32.
        """
        hidden = self.model.model.language_model(
            inputs_embeds=self._embed(pack, pixel_values, grid)[None],
            position_ids=pack.position_ids[:, None],  # [3, 1, L]
            attention_mask=pack.attention_mask[None, None],  # [1, 1, L, L]
            use_cache=False,
        ).last_hidden_state[0]  # [L, hidden]
        logits = self.model.lm_head(hidden[pack.logit_rows]).float()  # [N, V]
        logits = (logits + self.logit_bias.float()) / self.temperature
        return -nn.functional.cross_entropy(logits, pack.targets, reduction="none")

    def is_allowed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """True where a token may be sampled. The others are left out of the loss and of the log-prob gap: their
        probability is about e^-100, so a ratio or a gap of theirs has no meaning."""
        return self.logit_bias[token_ids] == 0

    def _embed(self, pack: Pack, pixel_values: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """[L, hidden]: token embeddings with the video's features at the prompt's placeholders."""
        tokens = self.model.get_input_embeddings()(pack.input_ids)
        grid_thw = torch.tensor([grid], device=pixel_values.device)
        features = self.model.model.get_video_features(pixel_values, grid_thw).pooler_output[0]  # [V, hidden]
        prompt_ids = pack.input_ids[: pack.num_prompt_tokens]
        rows = (prompt_ids == self.model.config.video_token_id).nonzero()[:, 0]
        return tokens.index_copy(0, rows, features.to(tokens.dtype))
