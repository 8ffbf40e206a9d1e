"""Many may be inside, or one with the gate shut behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """What is inside sees no change; a change waits for what is inside, and what comes meanwhile waits for it."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._num_inside = 0
        self._left = asyncio.Event()

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        async with self._door:
            self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            self._left.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        async with self._door:
            while self._num_inside:
                self._left.clear()
                await self._left.wait()
            yield
