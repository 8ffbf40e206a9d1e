"""Files that a command was told to write."""

from pathlib import Path

from museg_ray.errors import ResourceError


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ResourceError: it cannot be written; names it.
    """
    partial = path.parent / f".{path.name}.partial"
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"Cannot write {path}: {error.strerror}. Name a file in a folder that exists.") from error
