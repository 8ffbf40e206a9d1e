"""The log of what happens to a run beside its steps: `events.jsonl`.

It is never taken back: it tells what happened to the run, also to steps that were made anew.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from museg_ray.append_log import AppendLog, Row
from museg_ray.events import EventKind

NUM_RECENT = 50


class Events(AppendLog):
    """Appends events; `step` is the one that the run stands at."""

    def __init__(self, path: Path, show: Callable[[EventKind, str], None]) -> None:
        """
        Args:
            path: of the file.
            show: is told of each.

        Raises:
            ResourceError: the file cannot be read or written.
        """
        super().__init__(path)
        self._show = show
        self.recent: deque[Row] = deque(maxlen=NUM_RECENT)
        """The last ones of this process."""
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
        self.recent.append(row)
        self.append([row])
        self._show(kind, text)
