"""The weights' way as bytes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from museg_ray.weights import blob as blob_module
from museg_ray.weights.blob import blob_file, read_weights, weights_to_blob


def test_weights_survive_the_way_through_a_blob_and_its_file() -> None:
    weights = {"a": torch.randn(3, 4), "b": torch.randn(5).to(torch.bfloat16), "c": torch.arange(6)[::2]}
    with blob_file(weights_to_blob(weights.items())) as path:
        read = dict(read_weights(path))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


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
        assert path.parent == tmp_path
