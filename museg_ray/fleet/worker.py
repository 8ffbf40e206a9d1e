"""What a crew needs of one member's process."""

from typing import Protocol


class Worker(Protocol):
    """One process, on whatever machine; or a fake. Its methods raise `MemberLost` once it is gone."""

    async def placed(self) -> bool:
        """Return when the cluster has room for it, for as long as that takes; True where the run keeps that room."""

    async def start(self) -> None:
        """Return when it can work.

        Raises:
            MusegError: it cannot start.
            MemberLost: it died meanwhile.
        """

    async def ping(self) -> bool:
        """True where it has been told that its machine will be taken away soon."""

    async def close(self) -> None:
        """End it in good order; what is inside fails."""

    def kill(self) -> None:
        """End it at once, whatever state it is in."""
