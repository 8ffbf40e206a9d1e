"""The log of what happens to a run beside its steps: `events.jsonl`.

It is never taken back: it tells what happened to the run, also to steps that were made anew.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from museg_ray.append_log import AppendLog, Row
from museg_ray.events import EventKind

NUM_RECENT = 50


class Events:
    """Appends events; `step` is the one that the run stands at."""

    def __init__(self, path: Path, show: Callable[[EventKind, str], None]) -> None:
        """
        Args:
            path: of the file.
            show: is told of each.

        Raises:
            ResourceError: the file cannot be read or written.
        """
        self._log, self._show = AppendLog(path), show
        self._recent: deque[Row] = deque(maxlen=NUM_RECENT)
        self.step = 0

    def add(self, kind: EventKind, text: str, **fields: object) -> None:
        """Append one; an `EventSink`.

        Args:
            kind: of it.
            text: what happened, in words.
            fields: its numbers, and who: further columns of its row.

        Raises:
            ResourceError: disk full and the like.
        """
        row = {"unix_s": round(time.time(), 3), "step": self.step, "kind": kind.value, "text": text, **fields}
        self._recent.append(row)
        self._log.append([row])
        self._show(kind, text)

    def close(self) -> None:
        self._log.close()

    @property
    def recent(self) -> Sequence[Row]:
        """The last ones of this process."""
        return tuple(self._recent)
