"""The vision tower in one attention call a layer equals the stock one, window by window, in values and gradients."""

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from museg_ray.model import tower
from museg_ray.model.family import Grids, family_of
from museg_ray.model.qwen_vl import load_policy
from museg_ray.model.tower import NAME, use_one_call, window_attention

GRIDS = {
    "one frame of one window": [(1, 4, 4)],
    "windows of one length": [(3, 8, 8)],
    "cut windows": [(3, 6, 10)],
    "several videos": [(2, 6, 10), (1, 2, 2), (3, 4, 14), (2, 6, 6), (1, 10, 6)],
}
"""Patches (t, h, w) of each video. Qwen2.5-VL's windows are of 4 x 4 patches in the tests' models."""


@pytest.fixture
def stock(family_dir: Path) -> PreTrainedModel:
    return load_policy(family_dir, torch.float32)


@pytest.fixture
def ours(stock: PreTrainedModel) -> PreTrainedModel:
    model = deepcopy(stock)
    use_one_call(model.model.visual)
    return model


def inputs(model: PreTrainedModel, name: str) -> tuple[torch.Tensor, Grids]:
    grids = torch.tensor(GRIDS[name])
    values = model.model.visual.patch_embed.proj.weight[0].numel()
    return torch.randn(int(grids.prod(1).sum()), values, generator=torch.Generator().manual_seed(0)), grids


def run(model: PreTrainedModel, patches: torch.Tensor, grids: Grids) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """All features of the videos, and the gradient of each weight of the tower."""
    features = family_of(model.config.model_type).features(model, patches, grids)
    outputs = torch.cat([features.tokens.flatten(), *(part.flatten() for part in features.deepstack)])
    model.zero_grad()
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    (outputs * weights).sum().backward()
    return outputs.detach(), {name: x.grad.clone() for name, x in model.model.visual.named_parameters()}


def assert_equal(
    found: tuple[torch.Tensor, dict[str, torch.Tensor]], expected: tuple[torch.Tensor, dict[str, torch.Tensor]]
) -> None:
    assert expected[0].std() > 0.01, "features that hardly vary prove nothing"
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.norm() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        difference = (found[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-3 * largest)
        assert difference < 1e-5, f"{name}: {difference}"


@pytest.mark.parametrize("way", ["sdpa", "eager"])
@pytest.mark.parametrize("name", GRIDS)
def test_values_and_gradients_equal_the_stock_towers(
    stock: PreTrainedModel, ours: PreTrainedModel, name: str, way: str
) -> None:
    stock.model.visual.config._attn_implementation = way
    assert ours.model.visual.config._attn_implementation == NAME
    assert_equal(run(ours, *inputs(ours, name)), run(stock, *inputs(stock, name)))


def test_the_stock_forward_from_grids_alone_gives_the_same(stock: PreTrainedModel, ours: PreTrainedModel) -> None:
    """What is computed from the grids before the pass is what the tower would compute itself."""
    patches, grids = inputs(stock, "several videos")
    expected = stock.model.visual(patches, grid_thw=grids).pooler_output
    for model in (stock, ours):
        found = family_of(model.config.model_type).features(model, patches, grids).tokens
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.model.visual(patches, grid_thw=grids).pooler_output, expected, rtol=1e-5, atol=1e-5)


def test_layers_computed_again_in_the_backward_pass_give_the_same(
    stock: PreTrainedModel, ours: PreTrainedModel
) -> None:
    ours.train()
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(run(ours, *inputs(ours, "several videos")), run(stock, *inputs(stock, "several videos")))


def test_names_of_weights_stay(stock: PreTrainedModel, ours: PreTrainedModel) -> None:
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in stock.named_modules()]
    ours.load_state_dict(stock.state_dict())


def count(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str) -> list[None]:
    """One entry a call of the function from now on."""
    calls: list[None] = []
    function = getattr(holder, name)

    def counted(*args: Any, **given: Any) -> Any:
        calls.append(None)
        return function(*args, **given)

    monkeypatch.setattr(holder, name, counted)
    return calls


@pytest.mark.parametrize(("name", "lengths"), [("windows of one length", (1, 1)), ("cut windows", (3, 1))])
def test_attention_is_called_once_a_layer_and_length(
    ours: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, name: str, lengths: tuple[int, int]
) -> None:
    """Lengths: of the test models' windows, and of frames."""
    calls = count(monkeypatch, tower, "_length_by_length")
    of_sdpa = count(monkeypatch, tower, "scaled_dot_product_attention")
    orders = count(monkeypatch, torch.Tensor, "argsort")
    family_of(ours.config.model_type).tower(ours, *inputs(ours, name))
    vision = ours.config.vision_config
    num_frame_layers = len(getattr(vision, "fullatt_block_indexes", range(vision.depth)))
    num_window_layers = vision.depth - num_frame_layers
    assert len(calls) == vision.depth
    assert len(of_sdpa) == num_window_layers * lengths[0] + num_frame_layers * lengths[1]
    assert len(orders) == 2 * (1 + (num_window_layers > 0)), "sorted once a pass and not for every layer"


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """[N, heads, width]: one window by itself."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1)


def test_the_kernel_gets_rows_bounds_and_the_longest_window(
    stock: PreTrainedModel, ours: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in in the kernel's place, which is on GPUs alone, with the kernel's own conditions."""
    vision = ours.config.vision_config
    shape = (vision.num_heads, vision.hidden_size // vision.num_heads)
    found_bounds: list[torch.Tensor] = []

    def kernel(q: Any, k: Any, v: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *, scale: float) -> Any:
        assert all(x.shape[1:] == shape and x.stride(-1) == 1 for x in (q, k, v)) and scale == shape[1] ** -0.5
        assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32 and cu_seq_q.is_contiguous()
        bounds = cu_seq_q.tolist()
        assert bounds[0] == 0 and bounds[-1] == len(q)
        assert type(max_q) is int and max_q == max_k == max(b - a for a, b in pairwise(bounds))
        found_bounds.append(cu_seq_q)
        return torch.cat([alone(q[a:b], k[a:b], v[a:b], scale) for a, b in pairwise(bounds)])

    monkeypatch.setattr(tower, "_has_kernel", lambda query: True)
    monkeypatch.setattr(tower, "varlen_attn", kernel)
    assert_equal(run(ours, *inputs(ours, "several videos")), run(stock, *inputs(stock, "several videos")))
    assert len(found_bounds) == vision.depth and len({id(bounds) for bounds in found_bounds}) <= 2


def test_the_kernels_arguments_are_those_of_the_installed_torch() -> None:
    """Its rule for shapes runs without a GPU, forward and backward."""
    q, k, v = (torch.randn(48, 2, 8, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    bounds = torch.tensor([0, 16, 48], dtype=torch.int32, device="meta")
    output = varlen_attn(q, k, v, bounds, bounds, 32, 32, scale=0.3)
    assert isinstance(output, torch.Tensor) and output.shape == (48, 2, 8)
    output.sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))


@pytest.mark.parametrize(
    ("device", "dtype", "width", "is_taken"),
    [
        ("cuda", torch.bfloat16, 80, True),
        ("cuda", torch.float16, 72, True),
        ("cuda", torch.bfloat16, 20, False),
        ("cuda", torch.float32, 80, False),
        ("cpu", torch.bfloat16, 80, False),
    ],
)
def test_the_kernel_takes_half_precision_on_a_gpu_alone(
    device: str, dtype: torch.dtype, width: int, is_taken: bool
) -> None:
    query: Any = SimpleNamespace(is_cuda=device == "cuda", dtype=dtype, shape=(100, 4, width))
    assert tower._has_kernel(query) == is_taken


def test_any_windows_equal_one_call_each() -> None:
    for lengths in ([1], [3, 3], [5, 1, 5, 2, 1], [7, 4]):
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(sum(lengths), 2, 4, generator=generator) for _ in range(3))
        query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
        found, weights = window_attention(
            None, query, key, value, None, cu_seq_lens_q=bounds, max_length_q=max(lengths), scaling=0.3
        )
        expected = torch.cat([alone(q[a:b], k[a:b], v[a:b], 0.3) for a, b in pairwise(bounds.tolist())])
        torch.testing.assert_close(found, expected[None], rtol=0, atol=1e-6)
        assert weights is None, "as layers expect"
