"""An event loop whose time is simulated: what sleeps is woken in its order, and nobody waits."""

import asyncio
import selectors


class _Selector(selectors.SelectSelector):
    """Where the loop would wait, time passes instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            return super().select(None)  # a thread is at work, or all is stuck
        if not ready and timeout is not None:
            self.now_s += max(timeout, 0.0)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`asyncio.sleep(3600)` takes no time, and `loop.time()` has moved by an hour after it. While a thread works, time
    goes on to whatever is due next: what is simulated does without threads."""

    def __init__(self) -> None:
        self._simulated = _Selector()
        super().__init__(self._simulated)

    def time(self) -> float:
        return self._simulated.now_s
