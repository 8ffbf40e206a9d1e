"""The driver's clock: that of the event loop it runs on.

A loop with simulated time (simulate/loop.py) makes hours pass in a moment, for everything that asks here or sleeps by
asyncio; so the driver and its crews ask here, and never `time.monotonic`.
"""

import asyncio


def now_s() -> float:
    """Seconds on the running event loop's clock, which only ever grows."""
    return asyncio.get_running_loop().time()
