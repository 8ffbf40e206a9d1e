"""Who waits for whom in clip preparation, with actors that are objects of this process."""

import asyncio
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from museg_ray.config.schema import VideoConfig
from museg_ray.errors import ResourceError, VideoError, VideoFault
from museg_ray.video import actor as actor_module
from museg_ray.video.actor import ClipPool
from museg_ray.video.frames import largest_clip_bytes
from museg_ray.video.loader import ClipHandle
from museg_ray.video.prepare import PreparedClip
from museg_ray.video.store import GIB

CLIP_BYTES = 4 * 28 * 28 * 3


class Actors:
    """Ray's part: makes actors, which prepare a video when its gate is open. Gates are open unless `shut`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failures: dict[str, list[Exception]] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.start_failure: Exception | None = None
        self.num_started = self.num_busy = self.most_busy = 0
        self.killed: list[Any] = []

    def shut(self, *videos: str) -> None:
        self.gates |= {video: asyncio.Event() for video in videos}

    def remote(self, **options: Any) -> Callable[[type], Any]:
        return lambda actor_class: SimpleNamespace(remote=self._start)

    def _start(self, config: VideoConfig) -> Any:
        self.num_started += 1
        return SimpleNamespace(prepare=SimpleNamespace(remote=self._prepare), ready=SimpleNamespace(remote=self._ready))

    async def _ready(self) -> None:
        if self.start_failure is not None:
            raise self.start_failure

    async def _prepare(self, video: str) -> PreparedClip:
        self.asked.append(video)
        self.num_busy += 1
        self.most_busy = max(self.most_busy, self.num_busy)
        try:
            await asyncio.sleep(0)
            if video in self.gates:
                await self.gates[video].wait()
            if self.failures.get(video):
                raise self.failures[video].pop(0)
            return PreparedClip(video, video, (4, 28, 28, 3), 2.0, True)
        finally:
            self.num_busy -= 1


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    actors = Actors()
    monkeypatch.setattr(ray, "remote", actors.remote)
    monkeypatch.setattr(ray, "kill", actors.killed.append)
    return actors


def refusal(video: str) -> RayTaskError:
    return RayTaskError("prepare", "", VideoError(f"{video} is no video", VideoFault.NOT_A_VIDEO))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def test_callers_at_once_share_one_preparation(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        handles = await asyncio.gather(*(pool.get("a") for _ in range(5)), pool.get("b"))
        assert [handle.prepared.video for handle in handles] == ["a"] * 5 + ["b"]
        assert actors.asked == ["a", "b"] and pool.num_decoded == 2

    run(test())


def test_a_caller_that_asks_again_shares_with_the_next(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig(num_actors=4))
        actors.shut("a")

        async def ask_twice() -> None:
            await pool.get("a")
            actors.shut("a")
            await pool.get("a")

        callers = [asyncio.create_task(ask_twice()), asyncio.create_task(pool.get("a"))]
        await settle()
        actors.gates["a"].set()
        await settle()
        callers.append(asyncio.create_task(pool.get("a")))
        await settle()
        assert actors.asked == ["a", "a"]
        actors.gates["a"].set()
        await asyncio.gather(*callers)

    run(test())


def test_a_bad_file_fails_all_its_callers_and_nobody_else(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.failures["bad"] = [refusal("bad")]
        videos = ["bad", "good", "bad", "other"]
        first, good, second, other = await asyncio.gather(*map(pool.get, videos), return_exceptions=True)
        assert isinstance(good, ClipHandle) and isinstance(other, ClipHandle)
        for error in (first, second):
            assert type(error) is VideoError and error.fault is VideoFault.NOT_A_VIDEO
        assert actors.num_started == 1
        assert (await pool.get("bad")).prepared.video == "bad"  # a fault is not kept: the file may be mended

    run(test())


def test_a_cancelled_caller_leaves_the_clip_to_the_others(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.shut("a")
        callers = [asyncio.create_task(pool.get("a")) for _ in range(2)]
        await settle()
        callers[0].cancel()
        await settle()
        actors.gates["a"].set()
        assert (await callers[1]).prepared.video == "a"
        assert callers[0].cancelled() and actors.asked == ["a"]

    run(test())


def test_a_caller_cancelled_alone_leaves_nothing_behind(actors: Actors) -> None:
    """Its clip is in the store all the same, where the next one finds it."""

    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.shut("a")
        caller = asyncio.create_task(pool.get("a"))
        await settle()
        caller.cancel()
        actors.gates["a"].set()
        await settle()
        assert not pool._pending and not pool._ahead
        assert (await pool.get("a")).prepared.video == "a" and not pool._pending

    run(test())


def ahead_config(num_clips: int, **changes: Any) -> VideoConfig:
    """Room for so many small clips beside one of unknown size."""
    config = VideoConfig(**changes)
    config.ahead_gib = (largest_clip_bytes(config) + num_clips * CLIP_BYTES) / GIB
    return config


def test_what_is_ahead_is_prepared_in_order_and_handed_over(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        pool.prefetch(["a", "b", "a"])
        pool.prefetch(["b", "c"])
        await settle()
        assert actors.asked == ["a", "b", "c"]
        for video in "cab":
            assert (await pool.get(video)).prepared.video == video
        assert actors.asked == ["a", "b", "c"] and pool.num_decoded == 3

    run(test())


def test_what_is_ahead_takes_no_more_than_its_room_and_goes_on_as_clips_are_used(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(ahead_config(num_clips=3))
        pool.prefetch("abcdefgh")
        await settle()
        assert actors.asked == list("abcd")  # the fourth was started when three lay there
        await pool.get("b")
        await settle()
        assert actors.asked == list("abcde")
        await pool.get("h")  # it leaves the queue
        await settle()
        assert actors.asked == list("abcdeh")
        for video in "acdefg":
            await pool.get(video)
        assert sorted(actors.asked) == list("abcdefgh")

    run(test())


def test_clips_of_unknown_size_count_as_the_largest(actors: Actors) -> None:
    async def test() -> None:
        config = VideoConfig(num_actors=8)
        config.ahead_gib = 2.5 * largest_clip_bytes(config) / GIB
        pool = ClipPool(config)
        actors.shut(*"abcd")
        pool.prefetch("abcd")
        await settle()
        assert actors.asked == ["a", "b"]
        actors.gates["a"].set()
        await settle()
        assert actors.asked == ["a", "b", "c"]

    run(test())


def test_without_room_nothing_is_ahead(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig(ahead_gib=0))
        pool.prefetch("ab")
        await settle()
        assert actors.asked == []
        assert (await pool.get("b")).prepared.video == "b"

    run(test())


def test_what_is_asked_for_now_waits_for_one_preparation_at_most(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig(num_actors=2))
        actors.shut(*"abcdef")
        pool.prefetch("abcdef")
        await settle()
        now = [asyncio.create_task(pool.get(video)) for video in ("now", "then")]
        await settle()
        assert actors.asked == ["a", "b"]
        actors.gates["a"].set()
        await asyncio.gather(*now)
        assert actors.asked[2:4] == ["now", "then"] and actors.most_busy == 2
        for gate in actors.gates.values():
            gate.set()

    run(test())


def test_a_fault_ahead_is_told_to_whoever_asks_and_takes_no_room(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(ahead_config(num_clips=0))
        actors.failures["bad"] = [refusal("bad")]
        pool.prefetch(["bad", "a", "b"])
        await settle()
        assert actors.asked == ["bad", "a"]
        with pytest.raises(VideoError, match="bad is no video"):
            await pool.get("bad")
        assert actors.asked == ["bad", "a"]

    run(test())


def test_a_dead_actor_is_replaced_and_the_video_prepared(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.failures["a"] = [ActorDiedError()]
        assert (await pool.get("a")).prepared.video == "a"
        assert (actors.num_started, len(actors.killed), pool.num_decoded) == (2, 1, 1)

    run(test())


def test_a_video_that_ends_its_actor_twice_is_told(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.failures["a"] = [ActorDiedError(), ActorDiedError()]
        with pytest.raises(VideoError, match="Cannot read the video a: it ended the actor") as caught:
            await pool.get("a")
        assert caught.value.fault is VideoFault.CRASHED
        assert (await pool.get("b")).prepared.video == "b"

    run(test())


def test_no_more_actors_than_set_are_started(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig(num_actors=3))
        await asyncio.gather(*(pool.get(str(number)) for number in range(20)))
        assert actors.num_started == actors.most_busy == 3

    run(test())


def test_an_actor_that_does_not_start_is_no_fault_of_the_video(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.start_failure = ActorDiedError()
        with pytest.raises(ResourceError, match="did not start"):
            await pool.get("a")
        actors.start_failure = None
        assert (await pool.get("a")).prepared.video == "a"

    run(test())


def test_close_ends_whoever_waits(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.shut("a")
        pool.prefetch("bcd")
        waiting = asyncio.create_task(pool.get("a"))
        await settle()
        pool.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await settle()
        assert len(actors.killed) == actors.num_started == 1 and actors.num_busy == 0

    run(test())


def test_storage_that_does_not_answer_is_asked_again(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "RETRY_AFTER_S", (0.0, 0.0))
    silent = RayTaskError("prepare", "", VideoError("no answer", VideoFault.UNREACHABLE))

    async def test() -> None:
        pool = ClipPool(VideoConfig())
        actors.failures = {"a": [silent, silent], "b": [silent] * 3, "c": [refusal("c")]}
        assert (await pool.get("a")).prepared.video == "a"
        for video, num_asked in (("b", 3), ("c", 1)):
            with pytest.raises(VideoError):
                await pool.get(video)
            assert actors.asked.count(video) == num_asked

    run(test())


def test_an_actor_without_a_place_is_told(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "START_TIMEOUT_S", 0.1)
    monkeypatch.setattr(actors, "_ready", lambda: asyncio.sleep(60))

    async def test() -> None:
        pool = ClipPool(VideoConfig(num_cpus=7))
        with pytest.raises(ResourceError, match=r"found no place in the cluster .* reserves 7 CPUs"):
            await pool.ready()

    run(test())
