"""A weights file: its layout, its version, its lock."""

import fcntl
import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from museg_ray.errors import WeightsLostError
from museg_ray.weights.file import held, stamp, stamped_version
from museg_ray.weights.layout import VISION, Layout, Part, part_of
from museg_ray.weights.spans import Span, common, merged, without
from museg_ray.weights.tensors import frozen_parts, read_weights, tensor_layout, weight_shapes
from tests.weights.weight_files import weights_file

WEIGHTS = {
    "b": torch.randn(5).to(torch.bfloat16),
    "a": torch.randn(3, 4),
    "odd": torch.randn(7).to(torch.bfloat16),
    "c": torch.arange(6.0)[::2],
    "none": torch.empty(0, 3),
    "scalar": torch.tensor(2.5),
}


def test_weights_survive_the_way_through_a_file_which_stock_safetensors_reads() -> None:
    with weights_file(WEIGHTS) as file:
        ours, stock = dict(read_weights(file)), load_file(file)
        assert ours.keys() == stock.keys() == WEIGHTS.keys()
        for name, weight in WEIGHTS.items():
            assert torch.equal(ours[name], weight) and torch.equal(stock[name], weight)


def test_weights_are_mapped_and_not_copied() -> None:
    with weights_file({"a": torch.zeros(1024)}) as file:
        (_, read), *_ = read_weights(file)
        with file.open("r+b") as writer:
            writer.seek(-4, os.SEEK_END)
            writer.write(b"\0\0\x80?")
        assert read[-1] == 1.0


def test_a_file_says_what_it_has_and_which_parts_it_leaves_out() -> None:
    with weights_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, frozen=VISION) as file:
        assert weight_shapes(file) == {"a": (3, 4), "b": (5,)}
        assert frozen_parts(file) == {Part.TOWER, Part.MERGER}
    with weights_file({"a": torch.zeros(3, 4)}) as file:
        assert frozen_parts(file) == frozenset()


def test_frozen_weights_have_no_place_in_a_layout() -> None:
    with pytest.raises(AssertionError, match="not sent"):
        tensor_layout({"model.visual.merger.ln_q.weight": torch.zeros(3)}, VISION)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.visual.merger.mlp.0.weight", Part.MERGER),
        ("model.visual.deepstack_merger_list.2.norm.weight", Part.MERGER),
        ("model.visual.blocks.0.mlp.up_proj.weight", Part.TOWER),
        ("visual.patch_embed.proj.weight", Part.TOWER),
        ("visual.merger.ln_q.weight", Part.MERGER),
        ("model.language_model.layers.0.mlp.up_proj.weight", Part.LANGUAGE),
        ("lm_head.weight", Part.LANGUAGE),
    ],
)
def test_every_weight_belongs_to_a_part(name: str, part: Part) -> None:
    assert part_of(name) is part


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["F32", "BF16", "F16"]), st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        max_size=12,
    )
)
def test_weights_lie_at_multiples_of_their_items_size_and_do_not_overlap(
    weights: dict[str, tuple[str, tuple[int, ...]]],
) -> None:
    layout = Layout.of(weights)
    sizes = {name: torch.Size(shape).numel() * {"F32": 4}.get(dtype, 2) for name, (dtype, shape) in weights.items()}
    spans = sorted((layout.offsets[name], layout.offsets[name] + size) for name, size in sizes.items() if size)
    assert all(start % {"F32": 4}.get(weights[name][0], 2) == 0 for name, start in layout.offsets.items())
    assert sum(end - start for start, end in spans) == layout.size_bytes - len(layout.header)
    assert merged(spans) == ([(len(layout.header), layout.size_bytes)] if spans else [])


def test_a_version_stands_in_the_file_only_while_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(tensor_layout(WEIGHTS).header)
    with path.open("r+b") as file:
        assert stamped_version(file.fileno()) is None
        for version in (0, 7, 10**15):
            stamp(file.fileno(), version)
            assert stamped_version(file.fileno()) == version
        stamp(file.fileno(), None)
        assert stamped_version(file.fileno()) is None
    path.write_bytes(b"something else")
    with path.open("rb") as file:
        assert stamped_version(file.fileno()) is None


def test_only_the_version_that_is_asked_for_is_read_and_only_while_nobody_writes(tmp_path: Path) -> None:
    with weights_file(WEIGHTS, version=7) as path:
        with held(path, 7), path.open("rb") as writer, pytest.raises(BlockingIOError):
            fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(WeightsLostError, match="file of weights 6 has weights 7 by now"), held(path, 6):
            pass
        with path.open("r+b") as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            with pytest.raises(WeightsLostError, match="being filled with others"), held(path, 7):
                pass
            stamp(writer.fileno(), None)
        with pytest.raises(WeightsLostError, match="no whole ones"), held(path, 7):
            pass
    with pytest.raises(WeightsLostError, match="is gone"), held(path, 7):
        pass
    with weights_file(WEIGHTS, version=7) as path, pytest.raises(BlockingIOError), held(path, 7):
        raise BlockingIOError  # of whoever reads: not the lock's


SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted).map(tuple), max_size=8)


@given(SPANS, SPANS)
def test_spans_are_sets_of_bytes(some: list[Span], others: list[Span]) -> None:
    def bytes_of(spans: list[Span]) -> set[int]:
        return {place for start, end in spans for place in range(start, end)}

    a, b = merged(some), merged(others)
    assert bytes_of(a) == bytes_of(some)
    assert bytes_of(without(a, b)) == bytes_of(some) - bytes_of(others)
    assert bytes_of(common(a, b)) == bytes_of(some) & bytes_of(others)
    for spans in (a, without(a, b), common(a, b)):
        assert all(start < end for start, end in spans)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
