"""Attention in packed sequences: every way equals each completion alone after its prompt, by the plain formula."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from museg_ray.model import attention
from museg_ray.model.attention import PREFIX, visibility
from museg_ray.model.packing import Span

CPU = torch.device("cpu")
WAYS = ("split", "dense", "flex")
WITH_BACKWARD = ["split", "dense"]
"""FlexAttention has no gradient on a CPU."""
SCALING = 0.3


def spans_of(*shapes: tuple[int, Sequence[int]]) -> tuple[Span, ...]:
    """Spans one after another, from (prompt tokens, completion lengths)."""
    spans, start = [], 0
    for num_prompt, lengths in shapes:
        spans.append(Span(start, num_prompt, tuple(lengths)))
        start = spans[-1].end
    return tuple(spans)


def some_spans(max_length: int) -> st.SearchStrategy[tuple[Span, ...]]:
    shape = st.tuples(st.integers(1, max_length), st.lists(st.integers(0, max_length), min_size=1, max_size=4))
    return st.lists(shape, min_size=1, max_size=3).map(lambda shapes: spans_of(*shapes))


def owners(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """(span, completion) of each row; completion -1 is the prompt."""
    rows = []
    for index, span in enumerate(spans):
        rows += [(index, -1)] * span.num_prompt
        for completion, length in enumerate(span.lengths):
            rows += [(index, completion)] * length
    return rows


def seen_rows(spans: Sequence[Span], row: int) -> list[int]:
    """The rows that a row sees: those before it and itself, of its own span's prompt or of its own completion."""
    rows = owners(spans)
    span, completion = rows[row]
    return [at for at in range(row + 1) if rows[at] in ((span, -1), (span, completion))]


@given(some_spans(5))
def test_visibility_is_what_its_definition_says(spans: tuple[Span, ...]) -> None:
    mask = visibility(spans, CPU)
    assert mask.dtype == torch.bool and mask.shape == (spans[-1].end, spans[-1].end)
    for row in range(spans[-1].end):
        assert mask[row].nonzero()[:, 0].tolist() == seen_rows(spans, row)


def inputs(num_rows: int, heads: int, kv_heads: int, width: int, seed: int = 0) -> list[torch.Tensor]:
    """query, key, value [1, heads, L, width], with gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, count, num_rows, width) for count in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def plain_attention(tensors: Sequence[torch.Tensor], spans: Sequence[Span]) -> torch.Tensor:
    """[1, L, heads, width]: row by row and head by head, in float64."""
    query, key, value = (x[0].double() for x in tensors)
    heads_per_kv = query.shape[0] // key.shape[0]
    outputs = []
    for row in range(query.shape[1]):
        seen = seen_rows(spans, row)
        heads = []
        for head in range(query.shape[0]):
            keys, values = key[head // heads_per_kv, seen], value[head // heads_per_kv, seen]
            heads.append(torch.softmax(keys @ query[head, row] * SCALING, dim=0) @ values)
        outputs.append(torch.stack(heads))
    return torch.stack(outputs)[None]


def attend(way: str, tensors: Sequence[torch.Tensor], spans: Sequence[Span]) -> torch.Tensor:
    if way not in WITH_BACKWARD:
        tensors = [x.detach() for x in tensors]  # it refuses those with a gradient, also where none is asked for
    output, weights = ALL_ATTENTION_FUNCTIONS[PREFIX + way](
        None, *tensors, None, scaling=SCALING, spans=spans, dropout=0.0
    )
    assert weights is None
    return output


SHAPES: dict[str, tuple[Span, ...]] = {
    "one token": spans_of((1, [1])),
    "all empty": spans_of((3, [0, 0])),
    "empty between": spans_of((4, [0, 3, 0, 0, 1, 0])),
    "equal lengths": spans_of((5, [4, 4, 4])),
    "several spans": spans_of((2, [3, 1]), (6, [0, 0]), (1, [2]), (3, [1, 1, 5])),
    "more than one block of flex": spans_of((150, [40, 0, 90]), (20, [1, 33])),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_equals_the_plain_formula(way: str, shape: str) -> None:
    spans = SHAPES[shape]
    tensors = inputs(spans[-1].end, heads=4, kv_heads=2, width=8)
    with torch.no_grad():
        output = attend(way, tensors, spans)
        expected = plain_attention(tensors, spans)
    assert output.shape == (1, spans[-1].end, 4, 8)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("way", WITH_BACKWARD)
@settings(max_examples=25)
@given(spans=some_spans(6), heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]))
def test_outputs_and_gradients_of_any_spans_equal_the_plain_formulas(
    way: str, spans: tuple[Span, ...], heads: tuple[int, int]
) -> None:
    tensors = inputs(spans[-1].end, *heads, width=4)
    weights = torch.randn(1, spans[-1].end, heads[0], 4, generator=torch.Generator().manual_seed(1))
    output, expected = attend(way, tensors, spans), plain_attention(tensors, spans)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-6)
    found = torch.autograd.grad((output * weights).sum(), tensors)
    wanted = torch.autograd.grad((expected * weights).sum(), tensors)
    for gradient, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("way", ["flex", "split"])
@settings(max_examples=15)
@given(one=some_spans(6), other=some_spans(6))
def test_what_is_kept_of_a_pack_follows_the_spans_to_the_next(
    way: str, one: tuple[Span, ...], other: tuple[Span, ...]
) -> None:
    """The mask or the padding of the last pack is kept for all layers of a pass: a stale one would be silent."""
    with torch.no_grad():
        for spans in (one, other, one):
            tensors = inputs(spans[-1].end, heads=2, kv_heads=1, width=4)
            expected = plain_attention(tensors, spans)
            torch.testing.assert_close(attend(way, tensors, spans).double(), expected, rtol=0, atol=2e-6)


def test_padding_is_made_once_a_pack_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, make = SHAPES["several spans"], attention._padding
    made: list[Span] = []

    def counted(span: Span, device: torch.device) -> attention.Padding:
        made.append(span)
        return make(span, device)

    monkeypatch.setattr(attention, "_padding", counted)
    attention._paddings.cache_clear()
    for seed in range(3):
        attend("split", inputs(spans[-1].end, heads=2, kv_heads=1, width=4, seed=seed), list(spans))
    assert made == [span for span in spans if sum(span.lengths)]


@pytest.mark.parametrize("way", WITH_BACKWARD)
def test_no_gradient_reaches_another_completion_or_another_group(way: str) -> None:
    spans = SHAPES["several spans"]
    rows = owners(spans)
    tensors = inputs(spans[-1].end, heads=2, kv_heads=1, width=4)
    output = attend(way, tensors, spans)
    for row in range(len(rows)):
        gradients = torch.autograd.grad(output[0, row].sum(), tensors[1:], retain_graph=True)
        sizes = torch.stack([gradient.abs().sum(dim=(0, 1, 3)) for gradient in gradients]).sum(0)  # [L]
        reached = sizes.nonzero()[:, 0].tolist()
        assert set(reached) <= set(seen_rows(spans, row))


@pytest.mark.parametrize("way", WITH_BACKWARD)
def test_large_scores_stay_finite(way: str) -> None:
    spans = spans_of((3, [2, 0, 4]))
    query, key, value = inputs(spans[-1].end, heads=2, kv_heads=2, width=4)
    output = attend(way, (query * 1e4, key * 1e4, value), spans)
    output.sum().backward()
    assert output.isfinite().all() and all(bool(x.grad.isfinite().all()) for x in (query, key, value))  # type: ignore[union-attr]


def test_split_computes_no_pairs_between_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it cheap: the scores that are computed are those of prompt and (completion, prompt + completion)."""
    pairs: list[int] = []

    def counted(attention: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, *args, **kwargs):  # type: ignore[no-untyped-def]
        pairs.append(math.prod(query.shape[:-1]) * key.shape[-2])
        return attention(query, key, *args, **kwargs)

    module = "museg_ray.model.attention.scaled_dot_product_attention"
    monkeypatch.setattr(module, partial(counted, torch.nn.functional.scaled_dot_product_attention))
    spans = spans_of((30, [10, 10, 10, 10]))
    attend("split", inputs(70, heads=1, kv_heads=1, width=4), spans)
    assert sum(pairs) == 30 * 30 + 4 * 10 * (30 + 10)
