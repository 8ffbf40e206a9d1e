"""Keeps what libraries print off the terminal."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def silenced_libraries() -> Iterator[TextIO]:
    """Keep what vLLM and its process print (pages of warnings) off the terminal; their failures come as errors.

    At the level of file descriptors, since the engine is a process of its own. Yields what still writes there.
    """
    saved = {number: os.dup(number) for number in (1, 2)}
    with open(os.devnull, "w") as sink, os.fdopen(os.dup(2), "w") as terminal:
        try:
            for number in saved:
                os.dup2(sink.fileno(), number)
            yield terminal
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
