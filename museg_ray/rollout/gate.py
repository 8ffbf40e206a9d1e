"""Many may be inside, or one with the gate shut behind it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """What is inside sees no change; a change waits for what is inside, and what comes meanwhile waits for it."""

    def __init__(self) -> None:
        self._num_inside = 0
        self._is_shut = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_shut)
            self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            await self._tell()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_shut)
            self._is_shut = True
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._num_inside)
            yield
        finally:
            self._is_shut = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
