"""Clip preparation on Ray, with real actors and their reader processes."""

import asyncio
import os
import pickle
from contextlib import suppress
from pathlib import Path
from socket import gethostname

import numpy as np
import psutil
import pytest
import ray

from museg_ray.errors import VideoError, VideoFault
from museg_ray.events import EventKind
from museg_ray.video.loader import ClipHandle, ClipLoader
from museg_ray.video.prepare import open_store, read_clip, source_id
from museg_ray.video.source import find_source
from tests.video.conftest import Machine, alone, wait_until


def readers() -> list[psutil.Process]:
    """The reader processes of the actors that this process has."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            parent = process.parent()
            if parent and parent.name().startswith("ray::") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_clips_are_named_and_sized_and_lie_in_the_store(machine: Machine) -> None:
    video = machine.new_video()
    handles = machine.get(*[video] * 5)
    assert len({handle.prepared for handle in handles}) == 1 and machine.pool.num_decoded == 1
    assert len(pickle.dumps(handles[0].prepared)) < 1000 and len(ray.cloudpickle.dumps(handles[0])) < 10_000
    clip, plain = ClipLoader(machine.config).load(handles[0]), read_clip(video, machine.config)
    assert handles[0].prepared.shape == plain.frames.shape and clip.key == plain.key
    np.testing.assert_array_equal(clip.frames, plain.frames)


def test_a_refusal_of_a_real_file_keeps_its_fault(machine: Machine, tmp_path: Path) -> None:
    good, bad = machine.new_video(), str(tmp_path / "absent.mp4")
    first, handle, second = machine.get(bad, good, bad)
    assert isinstance(handle, ClipHandle)
    for error in (first, second):
        assert type(error) is VideoError and error.fault is VideoFault.MISSING and bad in str(error)


def test_a_run_is_told_who_has_the_lock_of_a_video(machine: Machine) -> None:
    video = machine.new_video()
    with alone(open_store(machine.config), source_id(find_source(video))):
        machine.get(video)
    told = f"process {os.getpid()} on {gethostname()}, which has its lock, and is read without it"

    def is_told() -> bool:
        machine.runner.run(asyncio.sleep(0.05))
        return any(told in text for kind, text in machine.told if kind is EventKind.WAIT)

    wait_until(is_told)


def test_preparation_sees_no_gpu(machine: Machine) -> None:
    machine.get(machine.new_video())
    (reader,) = readers()
    assert reader.environ()["CUDA_VISIBLE_DEVICES"] == "" and reader.environ()["OMP_NUM_THREADS"] == "1"


def test_a_reader_that_hangs_costs_its_video_alone(machine: Machine) -> None:
    machine.get(machine.new_video())
    (reader,) = readers()
    reader.suspend()
    video = machine.new_video()
    (error,) = machine.get(video)
    assert isinstance(error, VideoError) and error.fault is VideoFault.TIMEOUT and video in str(error)
    (handle,) = machine.get(machine.new_video())
    assert isinstance(handle, ClipHandle) and not reader.is_running()


def test_a_killed_actor_is_replaced_and_its_reader_ends(machine: Machine) -> None:
    (handle,) = machine.get(machine.new_video())
    (reader,) = readers()
    ray.kill(handle.origin)
    (replaced,) = machine.get(machine.new_video())
    assert isinstance(replaced, ClipHandle) and replaced.origin != handle.origin
    wait_until(lambda: reader not in readers(), 10)


def test_an_actor_that_sends_for_long_to_another_machine_is_not_taken_for_stuck(
    ray_local: None, tmp_path: Path
) -> None:
    """Its clip has left the store, and to read it once more takes until the reader's deadline."""
    others = readers()
    machine = Machine(tmp_path, ping_every_s=0.1, ping_timeout_s=1.0)

    async def send(handle: ClipHandle) -> None:
        with pytest.raises(VideoError, match="timed out after 3 s"):
            await handle.origin.send.remote(handle.prepared.video)
        assert machine.pool.status().num_losses == 0

    with machine.runner:
        (handle,) = machine.get(machine.new_video())
        (reader,) = (process for process in readers() if process not in others)
        reader.suspend()
        machine.entry_of(handle).unlink()
        try:
            machine.runner.run(send(handle))
        finally:
            machine.runner.run(machine.pool.close())


def test_close_ends_actors_and_readers_also_hung_ones(machine: Machine) -> None:
    machine.get(machine.new_video())
    (reader,) = readers()
    actor = reader.parent()
    assert actor is not None
    reader.suspend()

    async def close_while_it_is_busy() -> None:
        waiting = asyncio.create_task(machine.pool.get(machine.new_video()))
        await asyncio.sleep(0.2)
        await machine.pool.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    machine.runner.run(close_while_it_is_busy())
    wait_until(lambda: not readers() and not actor.is_running(), 20)
