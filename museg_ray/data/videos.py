"""The files of annotated videos: where each is, whatever its ending, and how long."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from museg_ray.files import is_url

ENDINGS = (
    *(".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".3gp", ".3g2", ".flv", ".f4v", ".wmv", ".asf", ".mpg", ".mpeg"),
    *(".vob", ".ts", ".m2ts", ".mts", ".ogv", ".ogg", ".mxf", ".gif"),
)
"""Of a file that may be meant where an annotation names a video of the same stem."""


class FileLength(NamedTuple):
    duration_s: float
    fps: float
    """Frames a second on average; 0 where not known."""


Measure = Callable[[str], FileLength | None]
"""How long a video file is; None where it does not tell."""


class VideoFiles:
    """Looks in each folder, and at each file, once."""

    def __init__(self, measure: Measure = lambda path: None) -> None:
        self._is_file, self._measure, self._names_by_stem = cache(os.path.isfile), cache(measure), cache(_names_by_stem)

    def find(self, video: str) -> list[str]:
        """The file itself, else those beside it that differ by their ending only. URLs are not looked up.

        Args:
            video: absolute path or URL.
        """
        if is_url(video) or self._is_file(video):
            return [video]
        path = Path(video)
        stem = path.stem if path.suffix.lower() in ENDINGS else path.name
        return [str(path.with_name(name)) for name in self._names_by_stem(path.parent).get(stem, ())]

    def length(self, video: str) -> FileLength | None:
        """Of a file that was found; None of a URL."""
        return None if is_url(video) else self._measure(video)


def _names_by_stem(folder: Path) -> dict[str, list[str]]:
    """Of a folder's videos."""
    names: dict[str, list[str]] = {}
    try:
        listed = sorted(os.listdir(folder))
    except OSError:  # no such folder: nothing is there
        return names
    for name in listed:
        stem, ending = os.path.splitext(name)
        if ending.lower() in ENDINGS:
            names.setdefault(stem, []).append(name)
    return names
