"""The driver's end of `museg status`, `museg scale` and `museg stop`."""

import asyncio
from collections.abc import Callable
from typing import Any

from museg_ray.config.schema import Config
from museg_ray.fleet.control import Wish
from museg_ray.fleet.places import needs
from museg_ray.train.parts import Parts

STATUS_EVERY_S = 1.0
MEMBERS_PER_S = 256
"""That a status tells of, on average: one of a thousand members takes the driver five milliseconds."""


class Handle:
    """Leaves the run's status where others can read it, and does what they wish."""

    def __init__(
        self, config: Config, parts: Parts, status: Callable[[], dict[str, Any]], stop: Callable[[], str]
    ) -> None:
        """
        Args:
            config: of the run.
            parts: what is scaled.
            status: of this moment.
            stop: asks the run to end after its step; what it answers.
        """
        self._config, self._parts, self._status, self._stop = config, parts, status, stop

    async def serve(self) -> None:
        """Leave the status and do what is wished, again and again."""
        answers: dict[int, str] = {}
        while True:
            status = self._status()
            wishes = await self._parts.control.exchange(status, answers)
            answers = {number: self._do(wish) for number, wish in wishes.items()}
            if not answers:
                num_members = sum(len(crew["members"]) for crew in status["crews"].values())
                await asyncio.sleep(max(STATUS_EVERY_S, num_members / MEMBERS_PER_S))

    def _do(self, wish: Wish) -> str:
        if wish.kind == "stop":
            return self._stop()
        return "\n".join(self._scale(role, size) for role, size in wish.sizes.items())

    def _scale(self, role: str, size: int) -> str:
        crew = self._parts.crews[role]
        before = crew.status().num_wanted
        crew.resize(size)
        answer = f"{role}: {size} wanted, {before} before."
        if size <= before:
            return f"{answer} Those that are too many finish what they have and leave."
        return f"{answer} {self._room(role, size - before)}"

    def _room(self, role: str, count: int) -> str:
        """Whether the cluster has room now for so many more."""
        reserved, free = needs(self._config)[role], self._parts.free_resources()
        rooms = (free.get(kind, 0.0) // amount for kind, amount in reserved.items() if amount)
        room = int(min((count, *rooms)))
        each = ", ".join(f"{amount:g} {kind}" for kind, amount in reserved.items() if amount) or "nothing"
        if room >= count:
            return f"Each reserves {each}: there is room."
        left = ", ".join(f"{free.get(kind, 0.0):g} {kind}" for kind, amount in reserved.items() if amount)
        return (
            f"Each reserves {each}, so {count} more need {count} times that; free are {left}: room for {room}. The "
            f"other {count - room} wait until the cluster has more, and start by themselves then."
        )
