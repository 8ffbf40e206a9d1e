"""The vision tower's attention in one call a layer, and its patch embedding as a matrix product.

A window is what a patch sees: a frame, and in most layers of Qwen2.5-VL a part of one. The stock tower calls attention
once a window: 7,168 calls a pass for 448 frames in 32 layers. It makes one call a layer, and says where windows begin
and end, to an attention function with `flash` in its name (`is_flash_attention_requested` of transformers 5.19).
"""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import AttentionInterface

from museg_ray.model.attention import PREFIX

NAME = PREFIX + "flash_windows"


class PatchProjection(nn.Conv3d):
    """A convolution whose kernel is the whole patch: a matrix product, which some versions of torch compute slowly or
    in much memory as a convolution (PyTorch's issues 166122, 166643)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[N, hidden] from patches [N, 3, frames, height, width]."""
        return linear(input.flatten(1), self.weight.flatten(1), self.bias)


def use_one_call(visual: Any) -> None:
    """Make a vision tower attend in one call a layer and embed patches by a matrix product. Weights keep their names,
    and stay those of the same modules, which gather them under ZeRO 3."""
    visual.config._attn_implementation = NAME
    projection = visual.patch_embed.proj
    assert isinstance(projection, nn.Conv3d) and projection.stride == projection.kernel_size
    projection.__class__ = PatchProjection


def window_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, **given: Any
) -> tuple[torch.Tensor, None]:
    """As Hugging Face's layers call it: each of N patches sees those of its window.

    Args:
        query: [1, heads, N, width], as key and value.
        given: among others `cu_seq_lens_q`, [windows + 1] int32: the first row of each window, and N; `max_length_q`,
            rows of the longest window; `scaling`.

    Returns:
        [1, N, heads, width], and no attention weights.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, heads, width]
    bounds, longest, scaling = given["cu_seq_lens_q"], given["max_length_q"], given["scaling"]
    if _has_kernel(query):
        attended: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)
    else:
        attended = _length_by_length(q, k, v, scaling, bounds)
    return attended[None], None


def _has_kernel(query: torch.Tensor) -> bool:
    """Whether PyTorch's kernel for windows of any length takes it. All else (float32, a CPU) goes through SDPA, one
    length of windows after another, and gives the same."""
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0


def _length_by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, bounds: torch.Tensor
) -> torch.Tensor:
    """[N, heads, width], as all that it takes: windows of one length are one batch. Padding all to one length is slower
    and takes more memory."""
    order, back, shapes = _lengths(bounds)
    if len(shapes) > 1:
        query, key, value = (x.index_select(0, order) for x in (query, key, value))
    outputs = []
    for shape, *batch in zip(shapes, *(x.split([n * m for n, m in shapes]) for x in (query, key, value)), strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in batch)  # [windows, heads, length, width]
        attended = scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, back) if len(shapes) > 1 else outputs[0]


@lru_cache(maxsize=2)
def _lengths(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
    """[N] rows by the length of their window, [N] the way back, and (windows, length) for each length.

    Kept by the tensor's identity, which is how tensors are hashed: all layers of a pass come with the same one, or with
    one of two (Qwen2.5-VL's windows and frames), so a GPU is waited for once a pass.
    """
    lengths = bounds.diff().long()
    order = lengths.repeat_interleave(lengths).argsort(stable=True)
    found, counts = lengths.unique(return_counts=True)
    return order, order.argsort(), list(zip(counts.tolist(), found.tolist(), strict=True))


AttentionInterface.register(NAME, window_attention)
