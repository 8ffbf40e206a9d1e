"""Where a video's bytes are: a local path, or a URL that fsspec knows (s3://, gs://, hf://, https://, …)."""

import errno
import os
import stat as stat_bits
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
from blake3 import blake3
from fsspec.implementations.local import LocalFileSystem

from museg_ray.errors import VideoError, VideoFault
from museg_ray.files import is_url, partial_path
from museg_ray.video.folder import LimitedFolder, own_storage

CHUNK_BYTES = 16 * 1024**2
NOWHERE = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Of names that lead to no file, beside those for which Python has errors of their own."""
OnProgress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A video file that is there."""

    video: str
    """Path or URL."""
    identity: str
    """Place, size and time of change: equal as long as the file is the same."""
    path: Path | None
    """The file itself; None of one that is to be fetched."""
    size_bytes: int | None
    """None where its storage does not tell."""


def find_source(video: str) -> Source:
    """Look whether a video is there, without reading it.

    Raises:
        VideoError: it is not, or it is no file with content; its message is the reason alone.
    """
    with _reasons():
        if not is_url(video):
            return _find_local(video, video)
        system, path = fsspec.core.url_to_fs(video)
        if isinstance(system, LocalFileSystem):  # file:// names a file that need not be copied
            return _find_local(video, path)
        return _find_remote(video, system, path)


@contextmanager
def local_file(source: Source, downloads: LimitedFolder, on_progress: OnProgress) -> Iterator[Path]:
    """The file itself, or a local copy of a remote one.

    Invariant: a copy is in `downloads` only after all that was done with it went well. While it is in use it lies under
    a name of its own: nobody drives it out, and one that cannot be decoded, or ends the process that reads it, is
    fetched anew the next time. Else a bad copy would speak against a good video for ever.

    Args:
        on_progress: called after every piece.

    Raises:
        VideoError: it cannot be fetched, or not all of it.
        ResourceError: there is no place for it.
    """
    if source.path is not None:
        yield source.path
        return
    suffix = PurePosixPath(source.video).suffix[:8]  # demuxers look at it
    name = blake3(source.identity.encode()).hexdigest() + suffix
    partial = partial_path(downloads.folder / name)
    partial = partial.with_name(partial.name + suffix)
    with own_storage(downloads.folder):
        for folder in (downloads.folder.parent, downloads.folder):  # the store's, which a single look finds absent
            downloads.access.make_folder(folder)
    try:
        with own_storage(downloads.folder):
            if not downloads.take_out(name, partial):
                _fetch(source, downloads.access.new_file(partial), on_progress)
        yield partial
        with own_storage(downloads.folder):
            downloads.add(partial, name)
    finally:
        partial.unlink(missing_ok=True)


def content_hash(path: Path, on_progress: OnProgress) -> str:
    """BLAKE3 of a file's bytes.

    Raises:
        VideoError: it cannot be read.
    """
    hashed = blake3(max_threads=blake3.AUTO)
    with _reasons(), path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            hashed.update(piece)
            on_progress()
    return hashed.hexdigest()


def _fetch(source: Source, file: BinaryIO, on_progress: OnProgress) -> None:
    with file:
        for piece in _pieces(source.video):
            file.write(piece)
            on_progress()
        size_bytes = file.tell()
    # More than promised is no loss: storage that unpacks what it sends tells the packed size.
    if size_bytes < (source.size_bytes or 0):
        raise VideoError(
            f"its storage promised {source.size_bytes:,} bytes and sent {size_bytes:,}", VideoFault.UNREACHABLE
        )


def _pieces(url: str) -> Iterator[bytes]:
    # Web servers that cannot send parts are many: one stream, from the start to the end.
    options = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
    with _reasons(), fsspec.open(url, "rb", **options) as remote:
        while piece := remote.read(CHUNK_BYTES):
            yield piece


def _find_local(video: str, path: str) -> Source:
    found = os.stat(path)
    if stat_bits.S_ISDIR(found.st_mode):
        raise VideoError("Is a directory", VideoFault.NOT_A_VIDEO)
    if not stat_bits.S_ISREG(found.st_mode):  # to open a pipe that nobody writes to would wait for ever
        raise VideoError("it is no regular file", VideoFault.UNREACHABLE)
    _check_size(found.st_size)
    identity = f"{os.path.realpath(path)} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    # FFmpeg takes a relative name with a colon for a URL.
    return Source(video, identity, Path(path).absolute(), found.st_size)


def _find_remote(video: str, system: Any, path: str) -> Source:
    info: dict[str, Any] = system.info(path)
    if info.get("type") == "directory":
        raise VideoError("Is a directory", VideoFault.NOT_A_VIDEO)
    _check_size(info.get("size"))
    marks = [info.get(name) for name in ("size", "ETag", "Last-Modified")]  # HTTP's ukey is the URL alone
    return Source(video, f"{video} {system.ukey(path)} {marks}", None, info.get("size"))


def _check_size(size_bytes: int | None) -> None:
    if size_bytes == 0:
        raise VideoError("the file is empty", VideoFault.EMPTY)


@contextmanager
def _reasons() -> Iterator[None]:
    """What storage says, as a VideoError."""
    try:
        yield
    except VideoError:
        raise
    except OSError as error:
        fault = VideoFault.MISSING if error.errno in NOWHERE else VideoFault.UNREACHABLE
        if isinstance(error, FileNotFoundError):  # fsspec's has no number, and it raises it for any answer but 200
            status = getattr(error.__cause__, "status", 404)
            fault = VideoFault.MISSING if status in (404, 410) else VideoFault.UNREACHABLE
        elif isinstance(error, PermissionError):
            fault = VideoFault.NO_PERMISSION
        reason = os.strerror(error.errno) if error.errno else f"{type(error).__name__}: {error}"
        raise VideoError(reason, fault) from None
    except ValueError as error:  # an unknown protocol, a NUL in a path
        raise VideoError(str(error), VideoFault.MISSING) from None
    except ImportError as error:
        raise VideoError(
            f"its storage needs a package that is not installed: {error}", VideoFault.UNREACHABLE
        ) from None
    except Exception as error:  # botocore, gcsfs and aiohttp each have roots of their own
        raise VideoError(f"{type(error).__name__}: {error}", VideoFault.UNREACHABLE) from None
