"""Groups as packed sequences: `[prompt | c_1 ... c_G]` for one group after another, so that video and prompt are
computed once a group.

A completion sees its own prompt and itself, and its positions start right after its prompt: log-probs and gradients
are those of G separate rows (the idea, on text: Prefix Grouper, arXiv 2506.05433). Which tokens see which is in
`Span`s; attention.py computes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from museg_ray.model.positions import completion_positions


@dataclass(frozen=True, slots=True)
class Span:
    """One prompt with its completions inside a packed sequence."""

    start: int
    """Row of the prompt's first token."""
    num_prompt: int
    lengths: tuple[int, ...]
    """Tokens of each completion, in their order; they follow the prompt without a gap."""

    @property
    def first_completion(self) -> int:
        """Row of the first completion token."""
        return self.start + self.num_prompt

    @property
    def end(self) -> int:
        """Row after the last token."""
        return self.first_completion + sum(self.lengths)


@dataclass(frozen=True, slots=True)
class Row:
    """What one span is packed from."""

    prompt_ids: Sequence[int]
    """[P], video placeholders expanded."""
    positions: torch.Tensor  # [3, P] from `prompt_positions`
    completions: Sequence[Sequence[int]]
    """Any of them may be empty, and may hold any id of the vocabulary."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A packed sequence: L tokens in all, N of them completion tokens, V video tokens."""

    spans: tuple[Span, ...]
    input_ids: torch.Tensor  # [L]
    position_ids: torch.Tensor  # [3, L]
    video_rows: torch.Tensor  # [V] rows of the prompts' video tokens, in order
    logit_rows: torch.Tensor  # [N] rows of the sequence whose logits predict each completion token
    targets: torch.Tensor  # [N] the completion tokens

    def to(self, device: torch.device) -> "Pack":
        """The same pack with its tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, torch.Tensor)}
        return replace(self, **moved)


def pack_rows(rows: Sequence[Row], video_token_id: int) -> Pack:
    """Pack prompts with their completions into one sequence.

    Invariant: only a prompt's placeholders are video rows. A sampled placeholder is a token like any other, as it was
    for the engine that decoded it; taken for video it would shift the features of every later frame.
    """
    ids, positions, video, logit_rows, spans = [], [], [], [], []
    start = 0
    for row in rows:
        num_prompt = len(row.prompt_ids)
        assert row.positions.shape == (3, num_prompt), f"positions {tuple(row.positions.shape)} for {num_prompt} tokens"
        prompt = torch.tensor(row.prompt_ids, dtype=torch.long)
        span = Span(start, num_prompt, tuple(len(completion) for completion in row.completions))
        ids += [prompt, torch.tensor([token for c in row.completions for token in c], dtype=torch.long)]
        positions += [row.positions, *(completion_positions(row.positions, length) for length in span.lengths)]
        video.append((prompt == video_token_id).nonzero()[:, 0] + start)
        logit_rows.append(_logit_rows(span))
        spans.append(span)
        start = span.end
    input_ids = torch.cat(ids)
    return Pack(
        spans=tuple(spans),
        input_ids=input_ids,
        position_ids=torch.cat(positions, dim=1),
        video_rows=torch.cat(video),
        logit_rows=torch.cat(logit_rows),
        targets=torch.cat([input_ids[span.first_completion : span.end] for span in spans]),
    )


def _logit_rows(span: Span) -> torch.Tensor:
    """[N of the span]: the row before each token; for a completion's first token that is the prompt's last row."""
    rows = torch.arange(span.first_completion, span.end) - 1
    firsts = torch.tensor(span.lengths).cumsum(0) - torch.tensor(span.lengths)  # [G]
    rows[firsts[torch.tensor(span.lengths) > 0]] = span.first_completion - 1
    return rows
