"""Every odd or broken file gives either the frames that its times name or one of the faults that fit it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError, VideoFault
from museg_ray.types import ByteArray, Clip
from museg_ray.video.prepare import clip_key, read_clip
from museg_ray.video.reader import GuardedReader
from museg_ray.video.source import content_hash
from tests.video.broken_files import BROKEN_FILES, FORBIDDEN
from tests.video.conftest import NUM_BITS
from tests.video.odd_files import ODD_FILES, Frames, OddFile, video
from tests.video.real_files import REAL_FILES

NOBODY = 65534
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MAX_GROWTH_BYTES = 4 * 1024**2
REPORT_GROWTH = """
import sys
from tests.video.test_odd_files import memory_growth
sys.stdout.write(str(memory_growth(sys.argv[1:])))
"""

ReadNumber = Callable[[ByteArray], int]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("odd_file", [*ODD_FILES, *REAL_FILES, *BROKEN_FILES], ids=lambda odd_file: odd_file.name)
def test_a_file_gives_its_frames_or_a_fault_that_fits(
    tmp_path: Path, read_number: ReadNumber, odd_file: OddFile
) -> None:
    check(odd_file, str(odd_file.make(tmp_path)), VideoConfig(store_dir=str(tmp_path / "store")), read_number)


NOT_FOR_DECORD = {
    *("b-frames in mpegts", "mpeg-2 in mpegts", "mpegts", "growing frames in mpegts", "clock that wraps"),
    *("starts between key frames", "cut mpegts", "joined vob", "joined mpeg", "joined with b-frames"),
    *("joined, the second faster and shown sooner", "joined webm"),
    *("joined, the clock starts again", "joined, the clock leaps by an hour", "joined, the clock steps back by 100 s"),
    *("joined, the clock steps back by 30 s", "joined, the clock steps back by 1 s"),
    *("av1 in mp4", "av1 of 10 bits in mkv", "gif", "gif with odd delays", "cut gif", "bare h264 without times"),
    *("mirrored, turned by 0", "mirrored, turned by 90", "mirrored, turned by 180", "mirrored, turned by 270"),
    *("transparent", "pixels of 2 to 1", "pixels of 1 to 2", "another track is the default", "tiny size"),
    *("negative start", "cut fragments", "name not utf-8"),
}
"""Files that can be read, and that decord reads otherwise or not at all."""
RESIZED_TWICE = {"growing frames in webm": 30}
"""Grey levels: decord brings all frames to the size of the first."""


@pytest.mark.timeout(30)
@pytest.mark.parametrize("odd_file", [*ODD_FILES, *REAL_FILES, *BROKEN_FILES], ids=lambda odd_file: odd_file.name)
def test_decord_gives_the_same_frames_and_faults_or_is_refused(tmp_path: Path, odd_file: OddFile) -> None:
    path = str(odd_file.make(tmp_path))
    expected, found = (outcome(path, VideoConfig(store_dir=str(tmp_path), decoder=way)) for way in ("pyav", "decord"))
    if odd_file.name in NOT_FOR_DECORD:
        assert isinstance(found, VideoError) and found.fault is VideoFault.DECODER
        assert "decord reads" in str(found) and "Set video.decoder=pyav" in str(found)
    elif isinstance(expected, VideoError):
        assert isinstance(found, VideoError) and found.fault is expected.fault, found
    else:
        assert isinstance(found, Clip), found
        assert found.key != expected.key and found.duration_s == expected.duration_s
        np.testing.assert_array_equal(found.times_s, expected.times_s)
        gap = np.abs(found.frames.astype(np.int16) - expected.frames).max()
        assert gap <= RESIZED_TWICE.get(odd_file.name, 0)


READ_OTHERWISE_BEFORE = {
    *("avi without presentation times", "h264 with b-frames in avi", "packed b-frames in avi"),
    *("mirrored, turned by 0", "mirrored, turned by 90", "mirrored, turned by 180", "mirrored, turned by 270"),
    *("pixels of 2 to 1", "pixels of 1 to 2", "another track is the default"),
    *(odd_file.name for odd_file in REAL_FILES if odd_file.name.startswith("joined")),
}


@pytest.mark.parametrize("odd_file", [*ODD_FILES, *REAL_FILES], ids=lambda odd_file: odd_file.name)
def test_clips_kept_of_files_that_were_read_otherwise_before_are_not_found_and_all_others_are(
    tmp_path: Path, odd_file: OddFile
) -> None:
    config = VideoConfig(store_dir=str(tmp_path))
    path = odd_file.make(tmp_path)
    clip = outcome(str(path), config)
    if isinstance(clip, Clip):
        kept = clip_key(content_hash(path, lambda: None), config)
        assert (clip.key != kept) == (odd_file.name in READ_OTHERWISE_BEFORE)


def outcome(path: str, config: VideoConfig) -> Clip | VideoError:
    try:
        return read_clip(path, config)
    except VideoError as error:
        return error


@pytest.mark.parametrize("odd_file", FORBIDDEN, ids=lambda odd_file: odd_file.name)
def test_a_forbidden_file_is_refused(read_number: ReadNumber, odd_file: OddFile) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        path = str(odd_file.make(Path(folder)))
        with unprivileged():
            check(odd_file, path, VideoConfig(), read_number)


def test_a_reader_that_hangs_costs_its_video_only(tmp_path: Path) -> None:
    path = str(video()(tmp_path))
    other = str(video("other.mp4")(tmp_path))
    reader = GuardedReader(VideoConfig(store_dir=str(tmp_path / "store"), deadline_s=2.0))
    try:
        reader.prepare(path)
        assert reader.pid is not None
        with hanging(reader.pid), pytest.raises(VideoError, match=other) as caught:
            reader.prepare(other)
        assert caught.value.fault == VideoFault.TIMEOUT
        assert reader.prepare(other).shape[0] == 10
    finally:
        reader.close()


def test_memory_is_flat_over_1000_opens(tmp_path: Path) -> None:
    names = {"h264 in mp4", "b-frames in mkv", "vp9 in webm", "av1 in mp4", "gif", "mpegts", "rotated by 90"}
    names |= {
        "cut in its frames at 50%",
        "cut mkv at 60%",
        "frames of noise",
        "text",
        "sound only",
        "one frame",
        "missing",
    }
    odd_files = [odd_file for odd_file in (*ODD_FILES, *BROKEN_FILES) if odd_file.name in names]
    assert len(odd_files) == len(names)
    paths = []
    for odd_file in odd_files:
        folder = tmp_path / odd_file.name
        folder.mkdir()
        paths.append(str(odd_file.make(folder)))
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", REPORT_GROWTH, *paths]
    report = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert int(report.stdout) < MAX_GROWTH_BYTES


def memory_growth(paths: list[str], num_opens: int = 1000, num_warm_up: int = 200) -> int:
    """Bytes that this process holds more after opening the files in turn, once caches and pools are full."""
    config = VideoConfig()
    at_start = 0
    for number in range(num_warm_up + num_opens):
        if number == num_warm_up:
            at_start = _resident_bytes()
        with suppress(VideoError):
            read_clip(paths[number % len(paths)], config)
    return _resident_bytes() - at_start


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """A process that does nothing, and ignores all but a kill."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def unprivileged() -> Iterator[None]:
    """No rights to other people's files, also where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        try:
            os.seteuid(NOBODY)
        except OSError as error:
            pytest.skip(f"root may read every file, and cannot become someone else here: {error}")
    try:
        yield
    finally:
        os.seteuid(user)


def check(odd_file: OddFile, path: str, config: VideoConfig, read_number: ReadNumber) -> None:
    try:
        clip = read_clip(path, config)
    except VideoError as error:
        assert error.fault in odd_file.faults, f"{error.fault}: {error}"
        assert path in str(error)
        assert error.__context__ is None
        return
    assert odd_file.frames is not None, f"{clip.frames.shape}, {clip.times_s}"
    check_shape(clip, odd_file.frames)
    check_times(clip, odd_file.frames)
    check_numbers(clip, odd_file.frames, read_number)


def check_shape(clip: Clip, expected: Frames) -> None:
    count, height, width, channels = clip.frames.shape
    assert clip.frames.dtype == np.uint8 and channels == 3
    assert count >= 2 and count % 2 == height % 28 == width % 28 == 0
    assert (height > width) == expected.is_upright


def check_times(clip: Clip, expected: Frames) -> None:
    assert clip.duration_s == pytest.approx(expected.duration_s, abs=expected.duration_tolerance_s)
    assert clip.times_s.shape == (len(clip.frames),)
    assert clip.times_s[0] == 0
    assert (np.diff(clip.times_s) >= 0).all() and clip.times_s[-1] <= clip.duration_s


def check_numbers(clip: Clip, expected: Frames, read_number: ReadNumber) -> None:
    """Each frame is the one that its time says, and of all the nearest to the time that was wanted."""
    if not expected.is_readable:
        return
    assert all(shows_bars(frame) for frame in clip.frames)
    numbers = [read_number(frame) for frame in clip.frames]
    first = numbers[0] if expected.first is None else expected.first
    assert numbers[0] == first and max(numbers) < len(expected.starts_s)
    starts_s = np.array(expected.starts_s) - expected.starts_s[first]
    np.testing.assert_allclose(clip.times_s, starts_s[numbers], atol=expected.tolerance_s)
    check_nearest(clip, starts_s[first:], expected.tolerance_s)


def check_nearest(clip: Clip, starts_s: npt.NDArray[np.float64], tolerance_s: float) -> None:
    wanted_s = np.arange(len(clip.frames)) * clip.duration_s / len(clip.frames)
    least = np.abs(starts_s[None] - wanted_s[:, None]).min(axis=1)
    assert (np.abs(clip.times_s - wanted_s) <= least + tolerance_s + 1e-3).all()


def shows_bars(frame: ByteArray) -> bool:
    """Whether a frame looks undamaged: ten upright bars, each either dark or light all over."""
    centres = ((np.arange(NUM_BITS) + 0.5) * frame.shape[1] / NUM_BITS).astype(int)
    bars = frame[:, centres].mean(axis=2)  # [H, 10]
    is_even = np.ptp(bars, axis=0).max() < 60
    return bool(is_even and np.minimum(np.abs(bars - 40), np.abs(bars - 200)).max() < 45)
