"""A learner whose whole state is a few numbers, so that a run that lost or repeated anything shows other numbers."""

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from museg_ray.config.schema import PhaseConfig
from museg_ray.metrics import names
from museg_ray.types import Group
from tests.train.script import Script

SHARD = "shard-00000-of-00001.safetensors"
GAP = 1e-7
"""Mean log-prob gap that `gaps` finds."""


class FakeLearner:
    """Stands in for `LearnerHandle`.

    Its weights are one number, which follows from every group, step, moment and random draw.
    """

    def __init__(self, script: Script, checkpoint: Path | None = None) -> None:
        """
        Args:
            script: is asked before everything that it does.
            checkpoint: folder that `begin_checkpoint` was given.
        """
        self._script = script
        self._writing: asyncio.Task[None] | None = None
        self._stand(checkpoint)

    def _stand(self, checkpoint: Path | None) -> None:
        self.weight = self.moment = self.reference = 0.0
        self.version = 0
        self.random = np.random.default_rng(0)
        if checkpoint is not None:
            state = json.loads((checkpoint / SHARD).read_text())
            self.weight, self.moment, self.reference = state["weight"], state["moment"], state["reference"]
            self.random.bit_generator.state = state["random"]

    async def ready(self) -> None:
        await self._script.moment("learner", "start")

    async def restart(self, checkpoint: Path | None) -> None:
        await self.close()
        self._stand(checkpoint)
        await self.ready()

    async def update(self, groups: Sequence[Group], clips: Mapping[str, Any], step: int) -> dict[str, float]:
        await self._script.moment("learner", "update")
        assert groups and {group.clip_key for group in groups} <= clips.keys()
        for group in groups:
            assert len(group.responses) == len(group.rewards) == len(group.advantages) > 1
        lengths = [np.array([len(response.text) for response in group.responses], np.float32) for group in groups]
        pull = sum(float(group.advantages @ of_group) for group, of_group in zip(groups, lengths, strict=True))
        self.moment = 0.9 * self.moment + pull
        self.weight += (0.01 * self.moment + 0.1 * self.random.random()) / step
        learned = {names.LEARNER_LOSS: self.weight, names.LEARNER_KL: abs(self.weight - self.reference)}
        if any(group.weight_version == self.version and not any(r.spans for r in group.responses) for group in groups):
            learned[names.PARITY_GAP_MEAN] = 1e-7 * abs(self.weight)
            learned[names.PARITY_GAP_MAX] = 1e-6 * abs(self.weight)
        return learned

    async def gaps(self, group: Group, clips: Mapping[str, Any]) -> list[float]:
        await self._script.moment("learner", "gaps")
        return [GAP] * len(group.responses)

    async def start_phase(self, phase: PhaseConfig) -> None:
        await self._script.moment("learner", "start_phase")
        if phase.fresh_optimizer:
            self.moment = 0.0
        if phase.fresh_reference:
            self.reference = self.weight

    async def begin_checkpoint(self, folder: Path) -> None:
        await self._script.moment("learner", "begin_checkpoint")
        assert folder.is_dir()
        assert self._writing is None, "one at a time"
        state = {"weight": self.weight, "moment": self.moment, "reference": self.reference}
        copy = state | {"random": dict(self.random.bit_generator.state)}
        self._writing = asyncio.create_task(self._write(folder, json.dumps(copy)))

    async def finish_checkpoint(self) -> dict[str, dict[str, object]]:
        assert self._writing is not None
        try:
            await self._writing
        finally:
            self._writing = None
        return {}

    async def export_model(self, out_dir: Path) -> None:
        await self._script.moment("learner", "export_model")
        out_dir.mkdir(exist_ok=True)
        (out_dir / "weight").write_text(repr(self.weight))

    @property
    def doing(self) -> str:
        return ""

    async def ping(self) -> None:
        await self._script.moment("learner", "ping")

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    async def _write(self, folder: Path, content: str) -> None:
        with (folder / SHARD).open("w") as file:
            for start in range(0, len(content), 100):
                file.write(content[start : start + 100])
                file.flush()
                await self._script.moment("learner", "write")
        (folder / "rng-00000.pt").write_text("in the shard")
        (folder / "learner.json").write_text(json.dumps({"format": 1, "num_shards": 1}))


class FakeWeights:
    """Obeys `WeightChannel`: engines are given the one number that the learner's weights are."""

    phases_s: Mapping[str, float] = {"prepare": 0.0, "write": 0.0, "transfer": 0.0}

    def __init__(self, script: Script, learner: FakeLearner) -> None:
        self._script, self._learner = script, learner

    async def reserve(self, nodes: Collection[str]) -> None:
        await self._script.moment("weights", "reserve")

    async def publish(self, version: int, nodes: Collection[str]) -> Any:
        await self._script.moment("learner", "write_weights")
        self._learner.version = version
        return self._learner.weight

    async def close(self) -> None:
        """It holds nothing."""
