"""The policy as the learner sees it: log-probs of sampled tokens under the distribution they were sampled from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from museg_ray.model.attention import use_attention
from museg_ray.model.family import Grids, TowerStates, VideoFeatures, family_of
from museg_ray.model.packing import Pack
from museg_ray.model.qwen_vl import FORBIDDEN_LOGIT_BIAS
from museg_ray.model.tower import use_one_call


@dataclass(frozen=True, slots=True)
class Videos:
    """The videos of a pack, one a span: as patches, or as what a frozen tower made of them already."""

    grids: Grids  # [spans, 3]
    patches: torch.Tensor | None  # [patches of all videos, C]
    states: TowerStates | None = None


class PolicyModel(nn.Module):
    """Wraps the Hugging Face model; `model` holds the weights under their Hugging Face names.

    Calls the vision tower, the language model and the output head itself and not the model's own forward: that one
    looks for video placeholders in the whole sequence, so one sampled `<|video_pad|>` would end a run with "Video
    features and video tokens do not match". Here features go to the prompts' placeholders only, and any id in a
    completion is embedded as a plain token, which is what the engine does when it decodes.
    """

    model: Any
    logit_bias: torch.Tensor  # [V] added to every logits row

    def __init__(
        self, model: Any, forbidden_ids: Sequence[int], temperature: float, attention: str, chunk_tokens: int
    ) -> None:
        """
        Args:
            model: a `...ForConditionalGeneration` of one of our families.
            forbidden_ids: those of the engine that sampled.
            temperature: likewise.
            attention: `split`, `flex` or `dense`.
            chunk_tokens: completion tokens whose logits are in memory at once.
        """
        super().__init__()
        self.model = model
        self.family = family_of(model.config.model_type)
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        use_attention(model.model.language_model, attention)
        use_one_call(model.model.visual)
        bias = torch.zeros(model.config.text_config.vocab_size)
        bias[list(forbidden_ids)] = FORBIDDEN_LOGIT_BIAS
        self.register_buffer("logit_bias", bias, persistent=False)

    def forward(
        self, pack: Pack, videos: Videos, with_entropy: bool = False, num_chunks: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of the pack's completion tokens, and the entropies of the distributions they were drawn from.

        Args:
            num_chunks: how often the output head is called, at least; more than this pack needs where it is one of
                several ranks' packs of different lengths.

        Returns:
            [N] float32, and [N] float32 in nats (empty unless `with_entropy`).
        """
        features = self._features(videos)
        tokens = self.model.get_input_embeddings()(pack.input_ids)
        hidden = self.family.language(
            self.model,
            tokens.index_copy(0, pack.video_rows, features.tokens.to(tokens.dtype)),
            pack.position_ids,
            pack.video_rows,
            features,
            attention_mask=None,
            spans=pack.spans,
        )  # [L, hidden]
        return self._logprobs(hidden[pack.logit_rows], pack.targets, with_entropy, num_chunks)

    def tower(self, videos: Videos) -> TowerStates:
        """What a frozen tower makes of the videos: the same in every pass, so it is computed once."""
        assert videos.patches is not None
        with torch.no_grad():
            return self.family.tower(self.model, videos.patches, videos.grids)

    def is_allowed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """True where a token may be sampled. The others are left out of the loss and of the log-prob gap: their
        probability is about e^-100, so a ratio or a gap of theirs has no meaning."""
        return self.logit_bias[token_ids] == 0

    def _features(self, videos: Videos) -> VideoFeatures:
        if videos.states is not None:
            return self.family.merge(self.model, videos.states, videos.grids)
        assert videos.patches is not None
        return self.family.features(self.model, videos.patches, videos.grids)

    def _logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, with_entropy: bool, num_chunks: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In chunks whose logits are made again in the backward pass: those of a whole pack would be the largest
        tensors of all (2,400 tokens x 152,000 words x 4 bytes = 1.4 GiB, several times over)."""
        chunks = list(zip(hidden.split(self.chunk_tokens), targets.split(self.chunk_tokens), strict=True))
        chunks += [(hidden[:0], targets[:0])] * (num_chunks - len(chunks))
        if len(chunks) == 1:
            return self._chunk(*chunks[0], with_entropy)
        results = [checkpoint(self._chunk, *chunk, with_entropy, use_reentrant=False) for chunk in chunks]
        logprobs, entropies = zip(*results, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _chunk(
        self, hidden: torch.Tensor, targets: torch.Tensor, with_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model.lm_head(hidden).float()  # [chunk, V]
        logits = (logits + self.logit_bias.float()) / self.temperature
        logprobs = -nn.functional.cross_entropy(logits, targets, reduction="none")
        if not with_entropy:
            return logprobs, logprobs.new_empty(0)
        all_logprobs = logits.log_softmax(-1)
        return logprobs, -(all_logprobs.exp() * all_logprobs).sum(-1)
