"""What a crew needs of one member's process."""

from typing import Protocol


class Worker(Protocol):
    """One process, on whatever machine; or a fake. Its methods raise `MemberLost` once it is gone."""

    async def start(self) -> None:
        """Return when it can work. It may have to wait for a place in the cluster for as long as it takes.

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
