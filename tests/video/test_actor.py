import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import ray

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import VideoError
from museg_ray.video.actor import ClipPool
from museg_ray.video.decode import read_clip

Render = Callable[..., Path]
SMALL = VideoConfig(max_pixels=280 * 56, num_cpus=0.5)


@contextmanager
def opened(config: VideoConfig) -> Iterator[ClipPool]:
    pool = ClipPool(config)
    try:
        yield pool
    finally:
        pool.close()


def wait_for(look: Callable[[], int | None]) -> int:
    """Looks until there is something."""
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("waited for a minute in vain")


def wait_for_reader(path: Path, killed: int = 0) -> int:
    """Id of a process that has the file open: not this one, nor one that was killed and has not closed it yet."""

    def look() -> int | None:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            pid = int(link.parts[2])
            with suppress(OSError):  # the process or its file may be gone by now
                if pid not in (os.getpid(), killed) and link.readlink() == path:
                    return pid
        return None

    return wait_for(look)


def wait_for_end(pid: int) -> int:
    return wait_for(lambda: None if Path(f"/proc/{pid}/exe").exists() else pid)


@pytest.fixture
def silent_pipe(tmp_path: Path) -> Iterator[Path]:
    """A file that never ends and never says anything: whoever reads it hangs."""
    path = tmp_path / "silent.mp4"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR)
    yield path
    os.close(descriptor)


def test_callers_at_once_share_one_decode(ray_local: None, render: Render) -> None:
    video = str(render())

    async def ask() -> list[ray.ObjectRef]:
        return await asyncio.gather(*(pool.get(video) for _ in range(5)))

    with opened(SMALL) as pool:
        references = asyncio.run(ask())
        assert len(set(references)) == 1
        assert (pool.num_decoded, pool.num_hits) == (1, 4)
        shared, own = ray.get(references[0]), read_clip(video, SMALL)
        assert (shared.key, shared.duration_s) == (own.key, own.duration_s)
        np.testing.assert_array_equal(shared.frames, own.frames)


def test_the_clip_used_longest_ago_leaves_first(ray_local: None, render: Render) -> None:
    videos = [str(render(f"{name}.mp4", seconds=2)) for name in "abc"]
    config = VideoConfig(max_pixels=280 * 56, num_cpus=0.5, cache_clips=2)

    async def ask() -> None:
        for index in (0, 1, 0, 2, 0, 1):  # c drives out b, and b then a or c
            await pool.get(videos[index])

    with opened(config) as pool:
        asyncio.run(ask())
        assert (pool.num_decoded, pool.num_hits) == (4, 2)


def test_a_bad_file_fails_all_its_callers_and_nobody_else(ray_local: None, render: Render, tmp_path: Path) -> None:
    good, bad = str(render(seconds=2)), str(tmp_path / "absent.mp4")

    async def ask() -> list[ray.ObjectRef | BaseException]:
        return await asyncio.gather(pool.get(bad), pool.get(good), pool.get(bad), return_exceptions=True)

    with opened(SMALL) as pool:
        first, clip, second = asyncio.run(ask())
        assert isinstance(clip, ray.ObjectRef)
        for error in (first, second):
            assert type(error) is VideoError
            assert bad in str(error) and "No such file" in str(error)


def test_a_caller_that_gives_up_leaves_the_decode_to_the_others(ray_local: None, render: Render) -> None:
    video = str(render())

    async def ask() -> ray.ObjectRef:
        impatient = asyncio.create_task(pool.get(video))
        patient = asyncio.create_task(pool.get(video))
        await asyncio.sleep(0)
        impatient.cancel()
        return await patient

    with opened(SMALL) as pool:
        assert isinstance(asyncio.run(ask()), ray.ObjectRef)
        assert pool.num_decoded == 1


def test_a_video_over_its_deadline_is_named_and_the_next_one_is_read(
    ray_local: None, render: Render, silent_pipe: Path
) -> None:
    config = VideoConfig(max_pixels=280 * 56, num_cpus=0.5, deadline_s=6)

    async def ask() -> ray.ObjectRef:
        hanging = asyncio.create_task(pool.get(str(silent_pipe)))
        pid = await asyncio.to_thread(wait_for_reader, silent_pipe)
        with pytest.raises(VideoError, match=rf"{silent_pipe} timed out after 6 s"):
            await hanging
        await asyncio.to_thread(wait_for_end, pid)
        return await pool.get(str(render(seconds=2)))

    with opened(config) as pool:
        assert isinstance(asyncio.run(ask()), ray.ObjectRef)


def test_a_video_that_kills_its_reader_is_named_and_the_next_one_is_read(
    ray_local: None, render: Render, silent_pipe: Path
) -> None:
    async def ask() -> ray.ObjectRef:
        poisoned = asyncio.create_task(pool.get(str(silent_pipe)))
        first = await asyncio.to_thread(wait_for_reader, silent_pipe)
        os.kill(first, signal.SIGKILL)
        second = await asyncio.to_thread(wait_for_reader, silent_pipe, killed=first)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(VideoError, match=rf"{silent_pipe} killed the process that read it, twice"):
            await poisoned
        return await pool.get(str(render(seconds=2)))

    with opened(SMALL) as pool:
        assert isinstance(asyncio.run(ask()), ray.ObjectRef)


def test_a_process_lost_while_idle_is_not_blamed_on_the_next_video(ray_local: None, render: Render) -> None:
    async def ask() -> ray.ObjectRef:
        await pool.get(str(render("first.mp4", seconds=2)))
        (actor,) = pool._idle
        ray.kill(actor)
        return await pool.get(str(render("second.mp4", seconds=2)))

    with opened(SMALL) as pool:
        assert isinstance(asyncio.run(ask()), ray.ObjectRef)
        assert pool.num_decoded == 2


def test_preparation_sees_no_gpu_and_close_ends_it(ray_local: None, silent_pipe: Path) -> None:
    async def ask() -> int:
        task = asyncio.create_task(pool.get(str(silent_pipe)))
        pid = await asyncio.to_thread(wait_for_reader, silent_pipe)
        assert b"CUDA_VISIBLE_DEVICES=\0" in Path(f"/proc/{pid}/environ").read_bytes()
        pool.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pid

    with opened(SMALL) as pool:
        wait_for_end(asyncio.run(ask()))
