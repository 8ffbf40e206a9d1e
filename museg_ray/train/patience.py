"""Says who is waited for where something takes three times as long as it usually does."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from museg_ray.clock import now_s

TIMES = 3.0
NUM_REMEMBERED = 9
FIRST_S = 180.0
"""After so long it is said of something that was never done before."""
LEAST_S = 10.0
"""What takes less is nobody's wait."""


class Patience:
    """For one event loop. What takes long is told of again and again, each time after twice as long."""

    def __init__(self, say: Callable[[str], None], whom: Callable[[], str]) -> None:
        """
        Args:
            say: is told in words.
            whom: is waited for at this moment, in words.
        """
        self._say, self._whom = say, whom
        self._took_s: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=NUM_REMEMBERED))

    @contextmanager
    def over(self, kind: str, what: str = "") -> Iterator[None]:
        """Watch what is done in the block.

        Args:
            kind: what is compared with what; nothing is told of one that failed.
            what: in words; empty: the kind.
        """
        began_s, took_s = now_s(), self._took_s[kind]
        usual_s = median(took_s) if took_s else None
        limit_s = FIRST_S if usual_s is None else max(LEAST_S, TIMES * usual_s)
        teller = asyncio.ensure_future(self._tell(what or kind, usual_s, limit_s))
        try:
            yield
            took_s.append(now_s() - began_s)
        finally:
            teller.cancel()

    async def _tell(self, what: str, usual_s: float | None, limit_s: float) -> None:
        waited_s = 0.0
        while True:
            await asyncio.sleep(limit_s - waited_s)
            waited_s = limit_s
            usual = "" if usual_s is None else f", {usual_s:.0f} s usually"
            self._say(f"{what} takes {waited_s:.0f} s by now{usual}: {self._whom()}")
            limit_s *= 2
