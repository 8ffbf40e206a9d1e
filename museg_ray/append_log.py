"""Files of JSON lines that only ever grow, and watermarks that they can be taken back to.

A line is handed to the operating system when it is written, so a process that is killed loses none; a machine that
fails loses what came after the last `mark`. A last line without its end is one that a crash tore: it does not count.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from museg_ray.errors import CheckpointError, ResourceError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a file went."""

    size_bytes: int = 0
    blake3: str = ""
    """Of all its bytes up to there; empty of no bytes."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class AppendLog:
    """One such file, by one writer. It is there once it has a line."""

    def __init__(self, path: Path) -> None:
        """Open it behind what is in it, without a torn last line.

        Raises:
            ResourceError: it cannot be read or written.
        """
        self.path = path
        self._open()

    def append(self, rows: Iterable[Mapping[str, object]]) -> None:
        """
        Raises:
            ResourceError: disk full and the like.
        """
        lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        if not lines:
            return
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(lines)
        except OSError as error:
            raise _not_written(self.path, error) from error
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
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise _not_written(self.path, error) from error
        return Watermark(self._size_bytes, self._hasher.hexdigest())

    def rewind(self, mark: Watermark) -> None:
        """Drop what came after `mark`. May be done twice.

        Raises:
            CheckpointError: the file does not begin with what it held then.
        """
        content = self.path.read_bytes()[: mark.size_bytes] if self.path.is_file() else b""
        if (len(content), _hash(content)) != (mark.size_bytes, mark.blake3):
            raise CheckpointError(
                f"{self.path} does not begin with the {mark.size_bytes} bytes that it held at the checkpoint. It was "
                "changed or is damaged: restore the file, or start a new run from `museg export CHECKPOINT MODEL_DIR`."
            )
        if not content:
            self.path.unlink(missing_ok=True)
        else:
            os.truncate(self.path, mark.size_bytes)
        self._open()

    def rows(self) -> Iterator[Row]:
        """
        Raises:
            CheckpointError: a line is damaged.
        """
        return read_rows(self.path)

    def _open(self) -> None:
        content = self.path.read_bytes() if self.path.is_file() else b""
        self._size_bytes = content.rfind(b"\n") + 1
        if self._size_bytes < len(content):
            os.truncate(self.path, self._size_bytes)
        self._hasher = blake3(content[: self._size_bytes])


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines; none where it is not there.

    Raises:
        CheckpointError: a line is damaged.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                return  # torn
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CheckpointError(f"{path}, line {number} is damaged ({error}); restore the file.") from None
            yield row


def _hash(content: bytes) -> str:
    return blake3(content).hexdigest() if content else ""


def _not_written(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path} could not be written: {error.strerror or error}. Free disk space there, then go on with --resume "
        "(run.resume=true)."
    )
