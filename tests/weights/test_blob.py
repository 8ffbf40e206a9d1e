"""The weights' way as bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from museg_ray.weights import blob as blob_module
from museg_ray.weights.blob import (
    VISION,
    Part,
    blob_file,
    frozen_parts,
    part_of,
    read_weights,
    weight_shapes,
    weights_to_blob,
)


def test_weights_survive_the_way_through_a_blob_and_its_file() -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5).to(torch.bfloat16), "c": torch.arange(6)[::2]}
    with blob_file(weights_to_blob(weights.items())) as path:
        read = dict(read_weights(path))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_blob_says_what_it_has_and_which_parts_it_leaves_out() -> None:
    weights = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}
    with blob_file(weights_to_blob(weights.items(), VISION)) as path:
        assert weight_shapes(path) == {"a": (3, 4), "b": (5,)}
        assert frozen_parts(path) == {Part.TOWER, Part.MERGER}
    with blob_file(weights_to_blob(weights.items())) as path:
        assert frozen_parts(path) == frozenset()


def test_frozen_weights_are_not_packed() -> None:
    with pytest.raises(AssertionError, match="not sent"):
        weights_to_blob([("model.visual.merger.ln_q.weight", torch.zeros(3))], VISION)


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


def test_blob_file_is_gone_after_use() -> None:
    with blob_file(np.zeros(8, dtype=np.uint8)) as path:
        assert path.stat().st_size == 8
    assert not path.exists()


def test_blob_file_lies_in_the_temporary_folder_where_shared_memory_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_module, "SHARED_MEMORY_DIR", tmp_path / "absent")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with blob_file(np.zeros(8, dtype=np.uint8)) as path:
        assert path.readlink().parent == tmp_path


def test_a_blob_file_has_no_name_that_a_killed_process_could_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_module, "SHARED_MEMORY_DIR", tmp_path)
    with blob_file(np.zeros(8, dtype=np.uint8)):
        assert list(tmp_path.iterdir()) == []
