"""Who may use what a frame store makes: `video.store_mode`, whatever the umask of the process that makes it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Access:
    """The permissions of new folders, and of new files in them. What is there already keeps its own."""

    folder_mode: int

    def make_folder(self, path: Path) -> None:
        """Make a folder where there is none; those above it are no part of the store and follow the umask."""
        try:
            path.mkdir(mode=0o700, parents=True)
        except OSError:  # of a folder that is there some systems say first that it may not be written
            if not path.is_dir():
                raise
        else:
            path.chmod(self.folder_mode)

    def new_file(self, path: Path) -> BinaryIO:
        """Make a file to write to. Never, not even for a moment, is it open to more than it may be."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(descriptor, self.folder_mode & 0o666)
        return os.fdopen(descriptor, "wb")


PRIVATE = Access(0o700)
ACCESS = {
    "private": PRIVATE,
    "group": Access(0o2770),  # with the bit that gives all in it the store folder's group
    "shared": Access(0o777),
}
