"""Weights files for tests: of plain tensors, and of what a learner writes."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from museg_ray.learner.learner import Learner
from museg_ray.weights.channel import WritePlace
from museg_ray.weights.host import WeightHost
from museg_ray.weights.layout import Layout, Part
from museg_ray.weights.spans import Span
from museg_ray.weights.tensors import fill, read_weights, tensor_layout


@contextmanager
def weights_file(
    tensors: Mapping[str, torch.Tensor], version: int = 1, frozen: Collection[Part] = ()
) -> Iterator[Path]:
    """As a machine's host serves it."""
    host, layout = WeightHost(), tensor_layout(tensors, frozen)
    host.reserve(layout)
    file = host.begin(version, 0.0)
    fill(file, layout, tensors)
    host.commit(version)
    yield file
    host.close()


def exported(learner: Learner, version: int = 0) -> dict[str, torch.Tensor]:
    """What the one rank of a learner writes."""
    host = WeightHost()
    host.reserve(learner.weight_layout)
    file = host.begin(version, 0.0)
    written = learner.write_weights(version, WritePlace(file, 0, 1))
    assert written == [(len(learner.weight_layout.header), learner.weight_layout.size_bytes)]
    host.commit(version)
    weights = {name: weight.clone() for name, weight in read_weights(file)}
    host.close()
    return weights


class TensorSource:
    """Whole tensors in this process, as a channel's source of one rank. Obeys `WeightSource`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], node: str) -> None:
        self._tensors, self._node, self._layout = tensors, node, tensor_layout(tensors)

    async def weight_layout(self) -> Layout:
        return self._layout

    async def nodes(self) -> list[str]:
        return [self._node]

    async def write_weights(self, version: int, places: Sequence[WritePlace]) -> list[list[Span]]:
        fill(places[0].file, self._layout, self._tensors)
        return [[(len(self._layout.header), self._layout.size_bytes)]]
