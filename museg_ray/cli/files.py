"""Files that a command was told to write."""

from pathlib import Path

from museg_ray.errors import ResourceError
from museg_ray.files import whole_file


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ResourceError: it cannot be written; names it.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"Cannot write {path}: {error.strerror}. Name a file in a folder that exists.") from error
