"""A user's reward that does what the response says: the worst that code in a reward actor can do."""

import ctypes
import os
import time

from museg_ray.rewards.answer import ParsedResponse
from museg_ray.types import GroundingQuery


def reward(response: ParsedResponse, query: GroundingQuery) -> float:
    deed = response.reasoning
    if deed == "sleep":
        time.sleep(60)
    elif deed == "slow":
        time.sleep(0.3)
    elif deed == "spin":
        _spin()
    elif deed == "spin and catch":
        try:
            _spin()
        except Exception:
            return 1.0
    elif deed == "hold the interpreter":
        _deadlock()
    elif deed == "die":
        os._exit(3)
    elif deed == "raise":
        raise ValueError("no such thing")
    elif deed == "nan":
        return float("nan")
    return 1.0


def _spin() -> None:
    while time.sleep(0) is None:
        pass


def _deadlock() -> None:
    """Waits for ever in C, with the interpreter's lock held: no signal handler of Python's can run."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


not_a_function = 3
