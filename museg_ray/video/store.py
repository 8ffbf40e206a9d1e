"""The frame store: prepared clips on disk, mapped into memory by whoever reads them.

    STORE/clips/KEY.arrow     a clip: an Arrow IPC stream, then the BLAKE3 of all bytes before it
    STORE/sources/ID          the content hash of a source file, by its place, size and time
    STORE/downloads/          local copies of remote videos
    STORE/locks/KEY, ID       who prepares what, while it does

Processes of several machines may share a folder. An entry is written under a name of its own and renamed, so a process
that is killed leaves no half of one; it is checked when a process first opens it, and a damaged one is deleted and
rebuilt. `pyarrow.ipc.open_stream` reads an entry too: a row a frame, with its pixels and its time.
"""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from blake3 import blake3

from museg_ray.files import partial_path, whole_file
from museg_ray.types import Clip
from museg_ray.video.folder import PRIVATE, Access, LimitedFolder, own_storage
from museg_ray.video.lock import file_lock

GIB = 1024**3
CHECKSUM_BYTES = 32
HEADER = b"museg_ray.clip"
NOTE = re.compile(rb"[0-9a-f]{64}")
"""A lost write leaves zeros or nothing; videos whose notes were alike would share a clip."""


class FrameStore:
    """Clips by key. Every process has its own object; the folder is what they share."""

    def __init__(self, folder: Path, limit_gib: float, access: Access = PRIVATE) -> None:
        """
        Raises:
            ResourceError: the folder cannot be written.
        """
        self._folder, self._access = folder, access
        self._sources, self._locks = folder / "sources", folder / "locks"
        self._verified: dict[str, tuple[int, int]] = {}
        with own_storage(self._folder):
            for part in (folder, folder / "clips", self._sources, self._locks):
                access.make_folder(part)
        self._clips = LimitedFolder(folder / "clips", int(limit_gib * GIB), access)

    def get(self, key: str, video: str) -> Clip | None:
        """A clip whose frames are read-only and stay on disk until they are looked at; None where there is none.

        Args:
            video: what the clip is called for this caller; equal files share an entry.
        """
        path = self._clips.folder / _name(key)
        with own_storage(self._folder):
            try:
                stat = path.stat()
                mapped = pa.memory_map(str(path)).read_buffer()
            except FileNotFoundError:
                return None
            if not self._is_whole(key, mapped, (stat.st_ino, stat.st_mtime_ns)):
                path.unlink(missing_ok=True)
                return None
            self._clips.touch(path, stat)
        return _read(mapped, key, video)

    def put(self, clip: Clip) -> None:
        """Add a clip, whole or not at all."""
        partial = partial_path(self._clips.folder / _name(clip.key))
        with own_storage(self._folder):
            try:
                with self._access.new_file(partial) as file:
                    _write(clip, file, partial)
                stat = partial.stat()  # a rename keeps it, and another process may evict the entry at once
                self._clips.add(partial, _name(clip.key))
                self._verified[clip.key] = (stat.st_ino, stat.st_mtime_ns)
            finally:
                partial.unlink(missing_ok=True)

    def content_of(self, source_id: str) -> str | None:
        """The content hash noted for a source; None where none is, or a damaged one."""
        with own_storage(self._folder):
            try:
                note = (self._sources / source_id).read_bytes()
            except FileNotFoundError:
                return None
        return note.decode() if NOTE.fullmatch(note) else None

    def note_content(self, source_id: str, content_hash: str) -> None:
        path = self._sources / source_id
        with own_storage(self._folder), whole_file(path) as partial, self._access.new_file(partial) as file:
            file.write(content_hash.encode())

    def lock(
        self, key: str, patience_s: float, on_wait: Callable[[], None], tell: Callable[[str], None]
    ) -> AbstractContextManager[bool]:
        """One process prepares a clip, or reads a source, and others wait for it, see `file_lock`."""
        return file_lock(self._locks / key, self._access, patience_s, on_wait, tell)

    def _is_whole(self, key: str, mapped: pa.Buffer, identity: tuple[int, int]) -> bool:
        """Compare with the checksum: once in a process for each file, since it reads all of it."""
        if self._verified.get(key) == identity:
            return True
        content, checksum = mapped[:-CHECKSUM_BYTES], mapped[-CHECKSUM_BYTES:].to_pybytes()
        if blake3(content, max_threads=blake3.AUTO).digest() != checksum:
            return False
        self._verified[key] = identity
        return True


def _name(key: str) -> str:
    return f"{key}.arrow"


def _write(clip: Clip, file: BinaryIO, path: Path) -> None:
    num_frames, height, width, _ = clip.frames.shape
    header = json.dumps({"duration_s": clip.duration_s, "height": height, "width": width})
    frame_type = pa.binary(height * width * 3)
    schema = pa.schema([("frame", frame_type), ("time_s", pa.float32())], metadata={HEADER: header})
    pixels = pa.py_buffer(np.ascontiguousarray(clip.frames))
    frames = pa.FixedSizeBinaryArray.from_buffers(frame_type, num_frames, [None, pixels])
    batch = pa.RecordBatch.from_arrays([frames, pa.array(clip.times_s, pa.float32())], schema=schema)
    with pa.ipc.new_stream(file, schema) as stream:
        stream.write_batch(batch)
    file.flush()
    file.write(blake3(max_threads=blake3.AUTO).update_mmap(path).digest())


def _read(mapped: pa.Buffer, key: str, video: str) -> Clip:
    """The inverse of `_write`, without a copy."""
    batch = pa.ipc.open_stream(mapped).read_next_batch()
    header = json.loads(batch.schema.metadata[HEADER])
    shape = (len(batch), header["height"], header["width"], 3)
    frames = np.frombuffer(batch.column("frame").buffers()[1], np.uint8, count=int(np.prod(shape))).reshape(shape)
    times_s = batch.column("time_s").to_numpy()
    return Clip(key, video, frames, times_s, header["duration_s"])
