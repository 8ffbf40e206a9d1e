"""What befalls the fakes: one place that a test, or a simulation, plugs its fate into."""

import asyncio
import hashlib


class Script:
    """Is asked at every moment of every fake; a subclass counts, waits, fails or kills there. This one does nothing.

    A moment is (who, what): a member's name, `learner`, or `clips`, and what it is about to do.
    """

    async def moment(self, who: str, what: str) -> None:
        """
        Raises:
            MemberLost, LearnerLostError, VideoError, ...: what the real part would raise in its place.
        """
        await asyncio.sleep(0)


def number(*what: object) -> int:
    """48 bits that follow from all of `what`, in every process the same."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=6).digest())
