"""Attention inside packed sequences: three ways to compute the same thing, by the names of `learner.attention`.

A token sees the tokens before it of its own span that are its prompt's or its own completion's. Hugging Face's layers
call these functions; `language_model(..., spans=pack.spans)` reaches them as a keyword argument.

    split   per span one causal call for the prompt, one call for all its completions against prompt and themselves.
            No mask over the whole: for G completions of C tokens it computes P²/2 + GC(P + C) pairs and not (P + GC)².
    flex    PyTorch's FlexAttention: one kernel that skips blocks in which nobody sees anybody.
    dense   one call with a mask [L, L]: what the other two must equal.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from museg_ray.model.packing import Span

PREFIX = "museg_"
"""Before the names under which Hugging Face knows these functions."""
Padding = tuple[torch.Tensor, torch.Tensor]
"""For the completions of a span that have tokens: [rows, longest] the sequence's row at each place, a row of the
completion again where it is padding; and the flat places that are no padding."""


def use_attention(language_model: Any, name: str) -> None:
    """Make a language model attend by `split`, `flex` or `dense`. The vision tower has its own (tower.py)."""
    language_model.config._attn_implementation = PREFIX + name


def split_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, spans: Sequence[Span]
) -> torch.Tensor:
    """[1, heads, L, width] from query [1, heads, L, width], key and value [1, fewer heads, L, width]."""
    outputs = []
    for span, padding in zip(spans, _paddings(tuple(spans), query.device), strict=True):
        rows = slice(span.start, span.first_completion)
        q, k, v = (x[:, :, rows] for x in (query, key, value))
        outputs.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)[0])
        if padding:
            outputs.append(_completions_attention(query[0], key[0], value[0], span, padding, scaling))
    return torch.cat(outputs, dim=1)[None]


def _completions_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, span: Span, padding: Padding, scaling: float
) -> torch.Tensor:
    """[heads, tokens of all completions, width], from query, key, value [heads, L, width].

    The completions are padded to one length at their ends, where causality hides the padding from all that is kept.
    """
    gather, keep = padding
    num_rows, longest = gather.shape

    def padded(x: torch.Tensor) -> torch.Tensor:  # [rows, heads, longest, width]
        return x[:, gather.flatten()].unflatten(1, (num_rows, longest)).transpose(0, 1)

    def with_prompt(x: torch.Tensor) -> torch.Tensor:  # [rows, heads, prompt + longest, width]
        prompt = x[:, span.start : span.first_completion].expand(num_rows, -1, -1, -1)
        return torch.cat([prompt, padded(x)], dim=2)

    mask = causal_lower_right(longest, span.num_prompt + longest)
    attended = scaled_dot_product_attention(
        padded(query), with_prompt(key), with_prompt(value), attn_mask=mask, scale=scaling, enable_gqa=True
    )  # [rows, heads, longest, width]
    return attended.transpose(0, 1).flatten(1, 2)[:, keep]


@lru_cache(maxsize=1)
def _paddings(spans: tuple[Span, ...], device: torch.device) -> list[Padding | None]:
    """Of each span; None where no completion has a token. All layers of a pack ask for the same, forward and when they
    are computed again: the last ones are kept."""
    return [_padding(span, device) if sum(span.lengths) else None for span in spans]


def _padding(span: Span, device: torch.device) -> Padding:
    lengths = torch.tensor([length for length in span.lengths if length])
    starts = lengths.cumsum(0) - lengths + span.first_completion
    places = torch.arange(int(lengths.max()))
    gather = starts[:, None] + torch.minimum(places, lengths[:, None] - 1)
    keep = (places < lengths[:, None]).flatten().nonzero()[:, 0]
    return gather.to(device), keep.to(device)


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, spans: Sequence[Span]
) -> torch.Tensor:
    """As `split_attention`."""
    mask = visibility(spans, query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)


def flex(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, spans: Sequence[Span]
) -> torch.Tensor:
    """As `split_attention`."""
    mask = _block_mask(tuple(spans), query.device)
    output: torch.Tensor = _flex_kernel(query.is_cuda)(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=True
    )
    return output


@cache
def _flex_kernel(is_compiled: bool) -> Any:
    """Compiled on a GPU. On a CPU as PyTorch's plain formula, whose gradients the compiled one does not have there."""
    # As a full graph it fails where it would otherwise fall back to the formula, and its [heads, L, L] scores.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True) if is_compiled else flex_attention


def _owners(spans: Sequence[Span], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[L] the span of each row, and its completion within the span (-1: the prompt)."""
    span_ids = [torch.full((span.end - span.start,), index) for index, span in enumerate(spans)]
    completions = [
        torch.cat([torch.full((span.num_prompt,), -1), torch.arange(len(span.lengths)).repeat_interleave(lengths)])
        for span in spans
        for lengths in (torch.tensor(span.lengths, dtype=torch.long),)
    ]
    return torch.cat(span_ids).to(device), torch.cat(completions).to(device)


def visibility(spans: Sequence[Span], device: torch.device) -> torch.Tensor:
    """[L, L] bool: the row sees the column."""
    span, completion = _owners(spans, device)
    is_visible = (completion[None] == -1) | (completion[None] == completion[:, None])
    return is_visible & (span[None] == span[:, None]) & torch.ones_like(is_visible).tril()


@lru_cache(maxsize=1)
def _block_mask(spans: tuple[Span, ...], device: torch.device) -> BlockMask:
    """FlexAttention's form of `visibility`. All layers of a pass ask for the same one, so the last one is kept."""
    span, completion = _owners(spans, device)

    def sees(batch: Any, head: Any, row: Any, column: Any) -> torch.Tensor:
        is_own = (completion[column] == -1) | (completion[column] == completion[row])
        return (row >= column) & (span[row] == span[column]) & is_own

    return create_block_mask(sees, None, None, len(span), len(span), device=device)


def _for_layers(attend: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, None]]:
    """As Hugging Face's layers call it: [1, L, heads, width], and no attention weights."""

    def called(module: Any, query: Any, key: Any, value: Any, mask: None, **given: Any) -> tuple[torch.Tensor, None]:
        return attend(query, key, value, given["scaling"], given["spans"]).transpose(1, 2), None

    return called


for _name, _function in (("split", split_attention), ("flex", flex), ("dense", dense_attention)):
    # Under a name that Hugging Face knows no mask for it makes none: the spans say all.
    AttentionInterface.register(PREFIX + _name, _for_layers(_function))
