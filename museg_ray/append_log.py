"""Files of JSON lines that only ever grow, and watermarks that they can be taken back to.

A line is handed to the operating system when it is written, so a process that is killed loses none; a machine that
fails loses what came after the last `mark`. A last line without its end is one that a crash tore: it does not count.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from blake3 import blake3

from museg_ray.errors import CheckpointError, ResourceError
from museg_ray.files import sync

Row = dict[str, Any]

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a file went."""

    size_bytes: int = 0
    blake3: str = ""
    """Of all its bytes up to there; empty of no bytes."""


class AppendLog:
    """One such file, by one writer. It is there once it has a line.

    Invariant: a line is only written behind whole lines, those that `append` wrote and `rewind` left. Behind half a
    line every later one would be lost: two would be read as one.
    """

    def __init__(self, path: Path) -> None:
        """Open it behind its last whole line. Nothing is changed yet: a run that is refused leaves its books alone.

        Raises:
            ResourceError: it cannot be read or written.
        """
        self.path = path
        refuse_link(path)
        self._file: FileIO | None = None
        """Kept open: on shared storage each closing would wait for the server."""
        try:
            self._size_bytes = _end_of_last_line(path) if path.is_file() else 0
            self._hasher = _hash_up_to(path, self._size_bytes)
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be opened: {error.strerror or error}. Make it readable and writable, then go on with "
                "--resume (run.resume=true)."
            ) from error

    def append(self, rows: Iterable[Mapping[str, object]]) -> None:
        """All of them or, where that fails, none.

        Raises:
            ResourceError: disk full and the like.
        """
        lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        if not lines:
            return
        try:
            self._write(lines)
        except OSError as error:
            raise not_written(self.path, error) from error
        self._hasher.update(lines)
        self._size_bytes += len(lines)

    def mark(self) -> Watermark:
        """Where it stands; all of it is on the disk when this returns. Costs no reading, however long the file is.

        Raises:
            ResourceError: disk full and the like.
        """
        if not self._size_bytes:
            return Watermark()
        try:
            sync(self.path)
        except OSError as error:
            raise not_written(self.path, error) from error
        return Watermark(self._size_bytes, self._hasher.hexdigest())

    def check(self, mark: Watermark) -> blake3:
        """Make sure that it still begins with what it held at `mark`; the hash of that.

        Raises:
            CheckpointError: it does not.
        """
        hasher = _hash_up_to(self.path, mark.size_bytes)
        if (hasher.hexdigest() if mark.size_bytes else "") != mark.blake3:
            raise CheckpointError(
                f"{self.path} does not begin with the {mark.size_bytes} bytes that it held at the checkpoint. It was "
                "changed or is damaged: restore the file, or start a new run from `museg export CHECKPOINT MODEL_DIR`."
            )
        return hasher

    def rewind(self, mark: Watermark) -> None:
        """Drop what came after `mark`. May be done twice.

        Raises:
            CheckpointError: as `check`.
        """
        hasher = self.check(mark)
        self.close()
        if mark.size_bytes:
            os.truncate(self.path, mark.size_bytes)
        elif self.path.is_file():
            self.path.unlink()
        self._size_bytes, self._hasher = mark.size_bytes, hasher

    def lines(self) -> Iterator[bytes]:
        """Its lines, each with its end; none where it is not there."""
        return _lines(self.path)

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            CheckpointError: a line is damaged.
        """
        return read_rows(self.path)

    def close(self) -> None:
        """What is appended later opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, lines: bytes) -> None:
        if self._file is None:
            file = self.path.open("ab", buffering=0)
            if file.tell() > self._size_bytes:  # a torn line
                file.truncate(self._size_bytes)
            self._file = file
        rest = memoryview(lines)
        try:
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):  # the first error is the one to tell of
                self._file.truncate(self._size_bytes)
            raise


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines; none where it is not there.

    Raises:
        CheckpointError: a line is damaged.
    """
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise damaged_line(path, number, str(error)) from None
        yield row


def damaged_line(path: Path, number: int, why: str) -> CheckpointError:
    """For a line that cannot be what was written; `number` counts from 1."""
    return CheckpointError(f"{path}, line {number} is damaged ({why}); restore the file.")


def refuse_link(path: Path) -> None:
    """
    Raises:
        ResourceError: a book is a link. To take it back would cut or delete what is elsewhere.
    """
    if path.is_symlink():
        raise ResourceError(
            f"{path} is a symbolic link, to {path.readlink()}. A run cuts its books when it goes back to a checkpoint, "
            "and never what is elsewhere: put the file itself there."
        )


def not_written(path: Path, error: OSError) -> ResourceError:
    """For a file or folder of a run that the disk does not take."""
    return ResourceError(
        f"{path} could not be written: {error.strerror or error}. Free disk space there, then go on with --resume "
        "(run.resume=true)."
    )


def _lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # torn, or being written: the file may have grown by now, and its rest would pass for a line
            yield line


def _end_of_last_line(path: Path) -> int:
    """Bytes up to the last end of a line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            if found := file.read(end - start).rfind(b"\n") + 1:
                return start + found
            end = start
    return 0


def _hash_up_to(path: Path, size_bytes: int) -> blake3:
    """Of a file's first bytes; of as many as there are, where there are fewer."""
    hasher = blake3()
    if not path.is_file():
        return hasher
    with path.open("rb") as file:
        while block := file.read(min(BLOCK_BYTES, size_bytes)):
            hasher.update(block)
            size_bytes -= len(block)
    return hasher
