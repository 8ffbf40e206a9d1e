"""Clip preparation actors without Ray, whose videos are prepared when a test lets them."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayError

from museg_ray.config.schema import VideoConfig
from museg_ray.video.prepare import PreparedClip


class Actors:
    """Ray's part: makes actors, which prepare a video when its gate is open. Gates are open unless `shut`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failures: dict[str, list[Exception]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.start_failures: list[RayError] = []  # of the next actors, one each
        self.num_started = self.num_busy = self.most_busy = 0
        self.killed: list[Any] = []
        self.told: list[str] = []

    def shut(self, *videos: str) -> None:
        self.gates |= {video: asyncio.Event() for video in videos}

    def open(self) -> None:
        for gate in self.gates.values():
            gate.set()

    def remote(self, **options: Any) -> Callable[[type], Any]:
        return lambda actor_class: SimpleNamespace(remote=self._start)

    def _start(self, config: VideoConfig) -> Any:
        self.num_started += 1
        return SimpleNamespace(prepare=SimpleNamespace(remote=self._prepare), ready=SimpleNamespace(remote=self._ready))

    async def _ready(self) -> list[str]:
        if self.start_failures:
            raise self.start_failures.pop(0)
        return [self.told.pop() for _ in self.told[:]]

    async def _prepare(self, video: str) -> PreparedClip:
        self.asked.append(video)
        self.num_busy += 1
        self.most_busy = max(self.most_busy, self.num_busy)
        try:
            await asyncio.sleep(0)
            if video in self.gates:
                await self.gates[video].wait()
            if self.failures.get(video):
                raise self.failures[video].pop(0)
            return PreparedClip(video, video, (4, 28, 28, 3), 2.0, True)
        finally:
            self.num_busy -= 1
