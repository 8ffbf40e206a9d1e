"""Small mp4 files whose every frame shows its own number; settings with a frame store of the test's own."""

import asyncio
import itertools
import multiprocessing
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import av
import fsspec
import numpy as np
import pytest
from blake3 import blake3
from fsspec.implementations.memory import MemoryFileSystem

from museg_ray.config.schema import Config, FleetConfig, VideoConfig
from museg_ray.events import EventKind
from museg_ray.types import ByteArray
from museg_ray.video.actor import ClipPool
from museg_ray.video.loader import ClipHandle
from museg_ray.video.store import FrameStore

NUM_BITS = 10


Render = Callable[..., Path]
Configure = Callable[..., VideoConfig]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Settings for small clips, with a frame store in the test's folder."""

    def configure_here(**changes: Any) -> VideoConfig:
        return small_config(tmp_path / "store", **changes)

    return configure_here


def small_config(folder: Path, **changes: Any) -> VideoConfig:
    return VideoConfig(**{"max_pixels": 140 * 28, "min_pixels": 28 * 28, "store_dir": str(folder)} | changes)


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """Starts processes that have imported the preparation already: in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "museg_ray.video.prepare"])
    return context


def wait_until(is_so: Callable[[], object], timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s, f"waited {timeout_s:g} s in vain"
        time.sleep(0.02)


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Renders a file of the given name in the test's folder, see `render_video`."""

    def render_here(name: str = "video.mp4", **settings: Any) -> Path:
        return render_video(tmp_path / name, **settings)

    return render_here


def render_video(
    path: Path,
    fps: int | Fraction = 24,
    seconds: float = 12,
    times_s: Sequence[float] | None = None,
    width: int = 280,
    height: int = 56,
    **options: str,
) -> Path:
    """One numbered frame at each of `times_s` (kept to the ms) or `fps` a second; `options` go to the container."""
    time_base = Fraction(1, 1000) if times_s is not None else 1 / Fraction(fps)
    if times_s is None:
        times_s = [number / fps for number in range(round(fps * seconds))]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        stream.codec_context.time_base = time_base
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, width, height), format="rgb24")
            frame.pts, frame.time_base = round(time_s / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def variant(path: Path, number: int) -> Path:
    """A copy that plays the same and has another content: a box that players skip is added."""
    copy = path.with_name(f"{path.stem}-{number}{path.suffix}")
    copy.write_bytes(path.read_bytes() + struct.pack(">I4sI", 12, b"free", number))
    return copy


def numbered_frame(number: int, width: int, height: int) -> ByteArray:
    """Ten vertical bars, light for the one bits of the number."""
    bits = np.array([number >> place & 1 for place in range(NUM_BITS)])
    columns = 40 + 160 * bits[np.arange(width) * NUM_BITS // width]
    return np.broadcast_to(columns.astype(np.uint8)[None, :, None], (height, width, 3)).copy()


@pytest.fixture
def read_number() -> Callable[[ByteArray], int]:
    """Reads the number that a frame shows, after decoding and resizing."""

    def read(frame: ByteArray) -> int:
        centres = (np.arange(NUM_BITS) + 0.5) * frame.shape[1] / NUM_BITS
        bits = frame.mean(axis=(0, 2))[centres.astype(int)] > 120
        return sum(1 << place for place in range(NUM_BITS) if bits[place])

    return read


@pytest.fixture(scope="session")
def qwen() -> ModuleType:
    """The video part of qwen-vl-utils, the yardstick for counts and sizes."""
    try:
        from qwen_vl_utils import vision_process
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"qwen-vl-utils cannot be imported: {error}")
    return vision_process


class RemoteFiles:
    """Files of fsspec's `memory://`, and how often each was opened for reading."""

    def __init__(self) -> None:
        self.num_opened: Counter[str] = Counter()

    def put(self, name: str, content: bytes) -> str:
        fsspec.filesystem("memory").pipe_file(f"/{name}", content)
        return f"memory://{name}"

    def remove(self, name: str) -> None:
        fsspec.filesystem("memory").rm_file(f"/{name}")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteFiles]:
    files = RemoteFiles()
    open_plainly = MemoryFileSystem._open

    def open_counted(system: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        files.num_opened[path.lstrip("/")] += mode == "rb"
        return open_plainly(system, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", open_counted)
    yield files
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


class WebFile(ThreadingHTTPServer):
    """One file on a web server of this machine, and how often it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _WebRequest)
        self.url = f"http://127.0.0.1:{self.server_port}/v.mp4"
        self.content = b""
        self.num_sent = 0
        self.sent: bytes | None = None
        """What is sent where it is not the content that is promised."""
        self.status = 200


class _WebRequest(BaseHTTPRequestHandler):
    server: WebFile

    def do_HEAD(self) -> None:
        self._send_head(len(self.server.content))

    def _send_head(self, size_bytes: int) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(size_bytes))
        self.send_header("ETag", f'"{blake3(self.server.content).hexdigest()}"')
        self.end_headers()

    def do_GET(self) -> None:
        sent = self.server.content if self.server.sent is None else self.server.sent
        self._send_head(len(sent))
        self.wfile.write(sent)
        self.server.num_sent += 1

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def web_file() -> Iterator[WebFile]:
    with WebFile() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@contextmanager
def disk_fills_up(after_bytes: int) -> Iterator[None]:
    """Writing more than so much into one file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def alone(store: FrameStore, key: str) -> AbstractContextManager[bool]:
    """Has the lock at once, or goes on without."""
    return store.lock(key, 0, lambda: None, lambda text: None)


def lock_once(store: FrameStore, key: str, patience_s: float = 0.0, on_wait: Callable[[], None] = lambda: None) -> str:
    """What was told; empty where it had the lock at once."""
    told: list[str] = []
    with store.lock(key, patience_s, on_wait, told.append) as has_waited:
        assert has_waited == bool(told) and len(told) < 3
    return "; ".join(told)


class Machine:
    """A pool with real actors, its event loop, and videos that nobody has prepared."""

    def __init__(self, folder: Path, **fleet: float) -> None:
        self.config = small_config(folder / "store", num_cpus=0.5, deadline_s=3)
        self.told: list[tuple[EventKind, str]] = []
        self.runner = asyncio.Runner()
        self.pool = self.runner.run(self._start_pool(FleetConfig(**fleet)))  # type: ignore[arg-type]
        self._video, self._numbers = render_video(folder / "video.mp4", seconds=2), itertools.count()

    async def _start_pool(self, fleet: FleetConfig) -> ClipPool:
        pool = ClipPool(
            Config(video=self.config, fleet=fleet), lambda kind, text, **fields: self.told.append((kind, text))
        )
        await pool.ready()
        return pool

    def _tell(self, kind: EventKind, text: str, **fields: Any) -> None:
        self.told.append((kind, text))

    def new_video(self) -> str:
        return str(variant(self._video, next(self._numbers)))

    def get(self, *videos: str) -> list[Any]:
        """The handle or the error of each."""

        async def get_all() -> list[Any]:
            return await asyncio.gather(*map(self.pool.get, videos), return_exceptions=True)

        return self.runner.run(get_all())

    def entry_of(self, handle: ClipHandle) -> Path:
        return Path(self.config.store_dir) / "clips" / f"{handle.prepared.key}.arrow"


@pytest.fixture(scope="module")
def machine(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    with machine.runner:
        yield machine
        machine.runner.run(machine.pool.close())
