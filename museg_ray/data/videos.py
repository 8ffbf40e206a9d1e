"""The files of annotated videos: where each is, whatever its ending, and how long."""

import os
from collections.abc import Callable
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
        self._measure = measure
        self._found: dict[str, list[str]] = {}
        self._lengths: dict[str, FileLength | None] = {}
        self._folders: dict[str, dict[str, list[str]]] = {}
        """Of each folder its videos' names by stem."""

    def find(self, video: str) -> list[str]:
        """The file itself, else those beside it that differ by their ending only. URLs are not looked up.

        Args:
            video: absolute path or URL.
        """
        if video not in self._found:
            is_there = is_url(video) or os.path.isfile(video)
            self._found[video] = [video] if is_there else self._of_same_stem(Path(video))
        return self._found[video]

    def length(self, video: str) -> FileLength | None:
        """Of a file that was found; None of a URL."""
        if video not in self._lengths:
            self._lengths[video] = None if is_url(video) else self._measure(video)
        return self._lengths[video]

    def _of_same_stem(self, video: Path) -> list[str]:
        folder = str(video.parent)
        if folder not in self._folders:
            self._folders[folder] = _names_by_stem(folder)
        names = self._folders[folder]
        stem = video.stem if video.suffix.lower() in ENDINGS else video.name
        return [os.path.join(folder, name) for name in names.get(stem, ())]


def _names_by_stem(folder: str) -> dict[str, list[str]]:
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
