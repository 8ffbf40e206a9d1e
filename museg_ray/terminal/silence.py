"""Keeps what libraries print off the terminal."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TextIO


def silenced_libraries() -> AbstractContextManager[TextIO]:
    """Keep what vLLM and its process print (pages of warnings) off the terminal; their failures come as errors.

    Yields what still writes to standard error.
    """
    return libraries_into(Path(os.devnull), kept=2)


@contextmanager
def libraries_into(path: Path, kept: int = 1) -> Iterator[TextIO]:
    """Append to a file what Ray's C++ parts and others write in the middle of a panel; yields what still writes to
    standard output (or to `kept`, a file descriptor).

    At the level of file descriptors: C++ and other processes know nothing of `sys.stdout`.
    """
    saved = {number: os.dup(number) for number in (1, 2)}
    with path.open("a", encoding="utf-8") as sink, os.fdopen(os.dup(kept), "w") as terminal:
        try:
            for number in saved:
                os.dup2(sink.fileno(), number)
            yield terminal
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
