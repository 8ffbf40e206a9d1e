"""Recovery on the real stack, for `museg bench pipeline --real`: not measured yet."""

from collections.abc import Callable

from museg_ray.bench.result import Row, Target
from museg_ray.errors import ResourceError


def measure_recovery(tell: Callable[[str], None]) -> tuple[list[Row], list[Target]]:
    """Seconds from SIGKILL of an engine process, of its actor and of a raylet until the loss is noticed, until its
    issues run elsewhere, and until the replacement serves at the newest version; tokens sampled twice.

    Args:
        tell: is told what is being done.
    """
    raise ResourceError("museg bench pipeline --real: recovery on the real stack is not measured yet.")
