"""Tasks that work side by side until one of them is done with everything, or the first fails."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")
Act = Callable[[], Coroutine[Any, Any, None]]


class Pumps:
    """The tasks of one stretch of training.

    `asyncio.TaskGroup` would wrap what one of them raises; a user is to read that error bare.
    """

    def __init__(self, *works: Coroutine[Any, Any, None]) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for work in works:
            self.start(work)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the others; an error of it ends all."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`; the others end with it. All have ended when this returns or raises.

        Raises:
            Exception: the first that any of them raised, as it was raised.
        """
        main = asyncio.create_task(work)
        try:
            either: list[asyncio.Future[Any]] = [main, self._failed]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            return main.result()
        finally:
            await self._end(main)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._failed.done():
            self._failed.set_exception(error)

    async def _end(self, main: asyncio.Task[Any]) -> None:
        tasks = [main, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._failed.done():
            self._failed.exception()  # told, or second to another one: asyncio need not complain
        else:
            self._failed.cancel()
