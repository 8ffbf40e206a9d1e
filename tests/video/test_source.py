"""Where a video's bytes are, and their local copy."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from fsspec.implementations.memory import MemoryFile

from museg_ray.errors import ResourceError, VideoError, VideoFault
from museg_ray.video import source as source_module
from museg_ray.video.folder import LimitedFolder
from museg_ray.video.source import content_hash, find_source, local_file
from museg_ray.video.store import GIB
from tests.video.conftest import RemoteFiles, WebFile, disk_fills_up


@pytest.fixture
def downloads(tmp_path: Path) -> LimitedFolder:
    return LimitedFolder(tmp_path / "downloads", GIB)


def fetch(url: str, downloads: LimitedFolder) -> bytes:
    """The content, of which a copy is kept."""
    with local_file(find_source(url), downloads, lambda: None) as path:
        return path.read_bytes()


def path_of(video: str, downloads: LimitedFolder) -> Path:
    with local_file(find_source(video), downloads, lambda: None) as path:
        return path


def fault_of(act: Callable[[], Any]) -> tuple[VideoFault, str]:
    with pytest.raises(VideoError) as caught:
        act()
    return caught.value.fault, str(caught.value)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))


REFUSED: dict[str, tuple[Callable[[Path], Any], VideoFault, str]] = {
    "missing": (lambda path: None, VideoFault.MISSING, "No such file"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), VideoFault.MISSING, "No such file"),
    "loop": (lambda path: path.symlink_to(path.name), VideoFault.MISSING, "Too many levels of symbolic links"),
    "directory": (lambda path: path.mkdir(), VideoFault.NOT_A_VIDEO, "Is a directory"),
    "pipe": (_pipe, VideoFault.UNREACHABLE, "no regular file"),
    "socket": (_socket, VideoFault.UNREACHABLE, "no regular file"),
    "empty": (lambda path: path.touch(), VideoFault.EMPTY, "empty"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_file_with_content_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    make, fault, reason = REFUSED[kind]
    path = tmp_path / "v.mp4"
    make(path)
    found, message = fault_of(lambda: find_source(str(path)))
    assert found is fault and reason in message


@pytest.mark.parametrize("video", ["", "/etc/passwd/video.mp4", "/" + "x" * 300, "a\0b.mp4"])
def test_a_path_that_cannot_be_is_missing(video: str) -> None:
    assert fault_of(lambda: find_source(video))[0] is VideoFault.MISSING


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert fault_of(lambda: find_source(str(tmp_path / "closed" / "v.mp4")))[0] is VideoFault.NO_PERMISSION


def test_a_source_is_the_same_as_long_as_the_file_is(tmp_path: Path) -> None:
    path, link = tmp_path / "v.mp4", tmp_path / "link.mp4"
    path.write_bytes(b"abc")
    link.symlink_to(path)
    first = find_source(str(path))
    assert find_source(str(path)) == first
    assert find_source(str(link)).identity == first.identity
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    second = find_source(str(path))
    stat = path.stat()
    path.write_bytes(b"abcd")
    os.utime(path, ns=(0, stat.st_mtime_ns))
    assert len({first.identity, second.identity, find_source(str(path)).identity}) == 3


def test_the_hash_is_blake3_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 1000)
    path = tmp_path / "v.mp4"
    path.write_bytes(os.urandom(3500))
    calls: list[None] = []
    assert content_hash(path, lambda: calls.append(None)) == blake3(path.read_bytes()).hexdigest()
    assert len(calls) == 4


def test_a_local_file_is_its_own_copy(tmp_path: Path, downloads: LimitedFolder) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"abc")
    assert path_of(str(path), downloads) == path
    assert not downloads.folder.exists()


def test_a_remote_file_is_fetched_once(remote: RemoteFiles, downloads: LimitedFolder) -> None:
    url = remote.put("v.mp4", b"abc" * 1000)
    assert {fetch(url, downloads) for _ in range(3)} == {b"abc" * 1000}
    (copy,) = downloads.folder.iterdir()
    assert copy.read_bytes() == b"abc" * 1000 and copy.suffix == path_of(url, downloads).suffix == ".mp4"
    assert remote.num_opened["v.mp4"] == 1


def test_a_remote_file_that_changed_is_fetched_again(remote: RemoteFiles, downloads: LimitedFolder) -> None:
    first = fetch(remote.put("v.mp4", b"one"), downloads)
    second = fetch(remote.put("v.mp4", b"two"), downloads)
    assert (first, second) == (b"one", b"two")
    assert remote.num_opened["v.mp4"] == 2


def test_a_web_file_that_changed_is_fetched_again(web_file: WebFile, downloads: LimitedFolder) -> None:
    for content in (b"one", b"two", b"other"):
        web_file.content = content
        for _ in range(2):
            assert fetch(web_file.url, downloads) == content
    assert web_file.num_sent == 3


def test_a_large_file_comes_from_a_web_server_that_cannot_send_parts(
    web_file: WebFile, downloads: LimitedFolder
) -> None:
    web_file.content = os.urandom(2 * source_module.CHUNK_BYTES)
    assert fetch(web_file.url, downloads) == web_file.content and web_file.num_sent == 1


def test_a_copy_that_left_is_fetched_again(remote: RemoteFiles, downloads: LimitedFolder) -> None:
    url = remote.put("v.mp4", b"abc")
    fetch(url, downloads)
    for copy in downloads.folder.iterdir():
        copy.unlink()
    assert fetch(url, downloads) == b"abc"


def test_a_copy_in_use_is_not_driven_out(remote: RemoteFiles, tmp_path: Path) -> None:
    downloads = LimitedFolder(tmp_path / "downloads", 1500)
    first, second = (remote.put(f"{name}.mp4", bytes(1000)) for name in "ab")
    fetch(first, downloads)
    for copy in downloads.folder.iterdir():
        os.utime(copy, (0, 0))  # so old a partial file would be abandoned
    with local_file(find_source(first), downloads, lambda: None) as path:
        fetch(second, downloads)
        fetch(remote.put("c.mp4", bytes(1000)), downloads)
        assert path.stat().st_size == 1000
    fetch(first, downloads)
    assert remote.num_opened["a.mp4"] == 1


def test_a_copy_that_did_not_serve_is_not_kept(remote: RemoteFiles, downloads: LimitedFolder) -> None:
    url = remote.put("v.mp4", b"abc")
    for num_opened in (1, 2):
        with pytest.raises(VideoError), local_file(find_source(url), downloads, lambda: None):
            raise VideoError("it does not decode")
        assert not list(downloads.folder.iterdir()) and remote.num_opened["v.mp4"] == num_opened


def test_a_copy_whose_reader_was_killed_is_fetched_anew(remote: RemoteFiles, downloads: LimitedFolder) -> None:
    """It may be what killed it, or made it hang."""
    url = remote.put("v.mp4", b"abc")
    fetch(url, downloads)
    killed = local_file(find_source(url), downloads, lambda: None)
    killed.__enter__()
    assert fetch(url, downloads) == b"abc" and remote.num_opened["v.mp4"] == 2


def test_a_download_that_is_shorter_than_promised_is_unreachable_and_not_kept(
    web_file: WebFile, downloads: LimitedFolder
) -> None:
    web_file.content = bytes(2000)
    web_file.sent = bytes(1500)
    fault, message = fault_of(lambda: fetch(web_file.url, downloads))
    assert fault is VideoFault.UNREACHABLE and "promised 2,000 bytes and sent 1,500" in message
    assert not list(downloads.folder.iterdir())
    web_file.sent = None
    assert fetch(web_file.url, downloads) == bytes(2000)


def test_copies_take_no_more_than_their_limit(remote: RemoteFiles, tmp_path: Path) -> None:
    downloads = LimitedFolder(tmp_path / "downloads", 2500)
    urls = [remote.put(f"{name}.mp4", bytes(1000)) for name in "abcd"]
    for url in urls:
        fetch(url, downloads)
        assert sum(path.stat().st_size for path in downloads.folder.iterdir()) <= 2500
    fetch(urls[-1], downloads)
    assert remote.num_opened["d.mp4"] == 1


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_url_of_a_local_file_is_its_path_and_nothing_is_copied(
    tmp_path: Path, downloads: LimitedFolder, protocol: str
) -> None:
    path = tmp_path / "with space, %20 и ü.mp4"
    path.write_bytes(b"abc")
    url = f"{protocol}://{path}"
    assert path_of(url, downloads) == path and not downloads.folder.exists()
    assert find_source(url).identity == find_source(str(path)).identity and find_source(url).video == url


def test_remote_refusals_are_told_apart(remote: RemoteFiles, tmp_path: Path) -> None:
    remote.put("folder/v.mp4", b"abc")
    remote.put("empty.mp4", b"")
    for url, fault, reason in (
        ("memory://absent.mp4", VideoFault.MISSING, "absent.mp4"),
        (f"file://{tmp_path}/absent.mp4", VideoFault.MISSING, "No such file"),
        ("memory://folder", VideoFault.NOT_A_VIDEO, "Is a directory"),
        (f"file://{tmp_path}", VideoFault.NOT_A_VIDEO, "Is a directory"),
        ("memory://empty.mp4", VideoFault.EMPTY, "empty"),
        ("nonsense://v.mp4", VideoFault.MISSING, "Protocol not known: nonsense"),
    ):
        found, message = fault_of(lambda url=url: find_source(url))
        assert (found, reason in message) == (fault, True), (url, message)


def test_a_storage_whose_package_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", _raise(ImportError("Install s3fs to access S3")))
    fault, message = fault_of(lambda: find_source("s3://bucket/v.mp4"))
    assert fault is VideoFault.UNREACHABLE and "not installed: Install s3fs" in message


class ForeignError(Exception):
    """As botocore has them: of no kind that Python knows."""


FAILURES = [
    (ConnectionResetError(104, "Connection reset by peer"), VideoFault.UNREACHABLE, "Connection reset by peer"),
    (TimeoutError(), VideoFault.UNREACHABLE, "TimeoutError"),
    (ForeignError("AccessDenied"), VideoFault.UNREACHABLE, "ForeignError: AccessDenied"),
    (PermissionError("Forbidden"), VideoFault.NO_PERMISSION, "Forbidden"),
    (FileNotFoundError("gone"), VideoFault.MISSING, "gone"),
]


@pytest.mark.parametrize(("error", "fault", "reason"), FAILURES, ids=lambda case: type(case).__name__)
def test_a_download_that_breaks_off_leaves_nothing(
    remote: RemoteFiles,
    downloads: LimitedFolder,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    fault: VideoFault,
    reason: str,
) -> None:
    monkeypatch.setattr(source_module, "CHUNK_BYTES", 1000)
    url = remote.put("v.mp4", bytes(5000))
    read = MemoryFile.read

    def read_a_part(file: MemoryFile, size: int = -1) -> bytes:
        if file.tell() >= 3000:
            raise error
        return read(file, size)

    monkeypatch.setattr(MemoryFile, "read", read_a_part, raising=False)
    found, message = fault_of(lambda: fetch(url, downloads))
    assert found is fault and reason in message
    assert not list(downloads.folder.iterdir())
    monkeypatch.setattr(MemoryFile, "read", read, raising=False)
    assert len(fetch(url, downloads)) == 5000


def test_the_own_disk_is_not_the_videos_fault(remote: RemoteFiles, downloads: LimitedFolder) -> None:
    url = remote.put("v.mp4", bytes(5000))
    with disk_fills_up(after_bytes=2000), pytest.raises(ResourceError):
        fetch(url, downloads)
    assert not list(downloads.folder.iterdir())
    assert len(fetch(url, downloads)) == 5000


def test_a_folder_of_copies_that_cannot_be_made_is_not_the_videos_fault(remote: RemoteFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ResourceError):
        fetch(remote.put("v.mp4", b"abc"), LimitedFolder(tmp_path / "file" / "downloads", GIB))


def _raise(error: Exception) -> Callable[..., Any]:
    def raise_it(*arguments: Any, **options: Any) -> Any:
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("status", "fault"), [(404, VideoFault.MISSING), (410, VideoFault.MISSING), (503, VideoFault.UNREACHABLE)]
)
def test_a_server_that_fails_is_told_from_a_file_that_is_not_there(
    web_file: WebFile, status: int, fault: VideoFault
) -> None:
    web_file.content, web_file.status = b"video", status
    assert fault_of(lambda: find_source(web_file.url))[0] is fault


def test_a_name_that_looks_like_an_address_is_a_local_file(
    tmp_path: Path, downloads: LimitedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("12:30.mp4").write_bytes(b"video")
    assert path_of("12:30.mp4", downloads) == tmp_path / "12:30.mp4"


def test_a_file_changed_in_place_is_another_source(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"first")
    stat, first = path.stat(), find_source(str(path))
    path.write_bytes(b"other")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_source(str(path)) != first
