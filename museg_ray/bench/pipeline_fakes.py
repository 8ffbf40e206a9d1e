"""What stands for engines, reward actors, clip actors and learner in pipeline_run.py: each waits, and gives what was
made beforehand. It is as long as a real model's, so that the driver has as much to pass on and to write down."""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from museg_ray.fleet.places import ANYWHERE
from museg_ray.fleet.worker import ActorWorker
from museg_ray.metrics import names
from museg_ray.rewards.scorer import Outcome, pack_outcomes, unpack
from museg_ray.rollout.engine import Sampling
from museg_ray.types import Group, Issue, Response, RewardParts
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.weights.channel import Confirmed

GROUP_SIZE = 8
COMPLETION_TOKENS = 300
GOLDEN_RATIO = 0.618
GAPS = {names.PARITY_GAP_MEAN: 1e-7, names.PARITY_GAP_MAX: 1e-6}


def _response(index: int) -> Response:
    reasoning = "Here the event seems to begin, and there it ends. " * 20
    text = f"<think>{reasoning}</think><answer>{index}.0-{index + 3}.5</answer>"
    return Response((1,) * COMPLETION_TOKENS, np.zeros(COMPLETION_TOKENS, np.float32), text, True)


def _outcome(index: int) -> RewardParts:
    share = index / GROUP_SIZE
    return RewardParts(1.0 + share, share, share, share, 0.0, 1.0, ((float(index), index + 3.5),))


RESPONSES = tuple(map(_response, range(GROUP_SIZE)))
OUTCOMES = tuple(map(_outcome, range(GROUP_SIZE)))


class Waits:
    """What takes how long, on the clock of the loop."""

    def __init__(self, rollout_s: float, update_s: float = 0.0, spread_s: float = 0.0) -> None:
        """
        Args:
            rollout_s: of a group.
            update_s: of a step.
            spread_s: groups take up to so much longer, each another time.
        """
        self._rollout_s, self._update_s, self._spread_s = rollout_s, update_s, spread_s
        self._num_groups = 0

    async def rollout(self) -> None:
        self._num_groups += 1
        await asyncio.sleep(self._rollout_s + self._spread_s * (self._num_groups * GOLDEN_RATIO % 1.0))

    async def update(self) -> None:
        await asyncio.sleep(self._update_s)


class FakeWorker(ActorWorker):
    """A member of any crew, without an actor, which is never lost."""

    node = "here"

    def __init__(self, waits: Waits) -> None:
        super().__init__(ANYWHERE)
        self._waits, self._version = waits, 0

    async def start(self) -> None:
        pass

    async def ping(self) -> bool:
        return False

    async def generate(self, issue: Issue, prompt_ids: Sequence[int], clip: ClipHandle, sampling: Sampling) -> Group:
        version = self._version
        if sampling.group_size == GROUP_SIZE:  # and not the few tokens of a probe
            await self._waits.rollout()
        prepared, responses = clip.prepared, RESPONSES[: sampling.group_size]
        return Group(issue, prepared.key, prepared.duration_s, tuple(prompt_ids), responses, version)

    async def update_weights(self, version: int, weights: Any) -> Confirmed:
        await asyncio.sleep(0)
        self._version = version
        return Confirmed(version)

    async def score(self, parts: Sequence[bytes]) -> bytes:
        await asyncio.sleep(0)
        outcomes: list[Sequence[Outcome]] = [OUTCOMES[: len(texts)] for texts, _, _ in unpack(parts)]
        return pack_outcomes(outcomes)

    async def prepare(self, video: str) -> ClipHandle:
        """Nobody opens the clips that it names."""
        await asyncio.sleep(0)
        prepared = PreparedClip(video, video, (4, 28, 28, 3), duration_s=12.0, was_decoded=True)
        return ClipHandle(prepared, origin=None)


class FakeLearner:
    """What the trainer asks of a learner; its checkpoints hold nothing."""

    doing = ""

    def __init__(self, waits: Waits, on_update: Callable[[int], None]) -> None:
        self._waits, self._on_update = waits, on_update

    async def ready(self, *_: object) -> None:
        pass

    start_phase = finish_checkpoint = ping = close = ready

    async def update(self, groups: Sequence[Group], clips: Any, step: int) -> dict[str, float]:
        self._on_update(step)
        await self._waits.update()
        return {names.LEARNER_LOSS: 0.1, names.LEARNER_KL: 0.1, **GAPS}

    async def gaps(self, group: Group, clips: Any) -> list[float]:
        return [GAPS[names.PARITY_GAP_MEAN]] * len(group.responses)

    async def begin_checkpoint(self, folder: Path) -> None:
        for name in ("shard-00000-of-00001.safetensors", "rng-00000.pt"):
            (folder / name).touch()
        (folder / "learner.json").write_text(json.dumps({"format": 1, "num_shards": 1}))


class FakeWeights:
    """A channel through which nothing goes."""

    phases_s: Mapping[str, float] = {"prepare": 0.0, "write": 0.0, "transfer": 0.0}

    async def reserve(self, nodes: Collection[str]) -> None:
        pass

    async def publish(self, version: int, nodes: Collection[str]) -> Any:
        return None

    async def close(self) -> None:
        pass
