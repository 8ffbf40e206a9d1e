"""Who waits for whom in clip preparation, with actors that are objects of this process."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from museg_ray.config.schema import Config, FleetConfig, VideoConfig
from museg_ray.errors import ResourceError, VideoError, VideoFault
from museg_ray.events import EventKind, no_events
from museg_ray.video import actor as actor_module
from museg_ray.video.actor import ClipPool
from museg_ray.video.frames import largest_clip_bytes
from museg_ray.video.loader import ClipHandle
from museg_ray.video.store import GIB
from tests.video.fake_actors import Actors

INIT_RAISED = RayActorError(error_msg="its __init__ raised", actor_init_failed=True)
CLIP_BYTES = 4 * 28 * 28 * 3


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    actors = Actors()
    monkeypatch.setattr(ray, "remote", actors.remote)
    monkeypatch.setattr(ray, "kill", actors.killed.append)
    monkeypatch.setattr(ray, "cancel", lambda call, **options: None)  # it ends with whoever awaits it
    return actors


def settings(**video: Any) -> Config:
    """Actors that are lost are replaced at once."""
    return Config(video=VideoConfig(**video), fleet=FleetConfig(backoff_s=0.0))


def ahead_settings(num_clips: int, **video: Any) -> Config:
    """Room for so many small clips beside one of unknown size."""
    config = settings(**video)
    config.video.ahead_gib = (largest_clip_bytes(config.video) + num_clips * CLIP_BYTES) / GIB
    return config


def refusal(video: str) -> RayTaskError:
    return RayTaskError("prepare", "", VideoError(f"{video} is no video", VideoFault.NOT_A_VIDEO))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def test_callers_at_once_share_one_preparation(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(), no_events)
        handles = await asyncio.gather(*(pool.get("a") for _ in range(5)), pool.get("b"))
        assert [handle.prepared.video for handle in handles] == ["a"] * 5 + ["b"]
        assert actors.asked == ["a", "b"] and pool.num_decoded == 2

    run(test())


def test_a_caller_that_asks_again_shares_with_the_next(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(num_actors=4), no_events)
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
        pool = ClipPool(settings(), no_events)
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
        pool = ClipPool(settings(), no_events)
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
        pool = ClipPool(ahead_settings(num_clips=0), no_events)
        actors.shut("a")
        caller = asyncio.create_task(pool.get("a"))
        await settle()
        caller.cancel()
        actors.gates["a"].set()
        await settle()
        pool.prefetch(["b", "c"])
        await settle()
        assert actors.asked == ["a", "b"]  # there is room for one of unknown size: nothing else takes any
        assert (await pool.get("a")).prepared.video == "a" and actors.asked == ["a", "b", "a"]

    run(test())


def test_what_is_ahead_is_prepared_in_order_and_handed_over(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(), no_events)
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
        pool = ClipPool(ahead_settings(num_clips=3), no_events)
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
        config = settings(num_actors=8)
        config.video.ahead_gib = 2.5 * largest_clip_bytes(config.video) / GIB
        pool = ClipPool(config, no_events)
        actors.shut(*"abcd")
        pool.prefetch("abcd")
        await settle()
        assert actors.asked == ["a", "b"]
        actors.gates["a"].set()
        await settle()
        assert actors.asked == ["a", "b", "c"]

    run(test())


def test_a_clip_taken_over_in_the_moment_in_which_it_is_done_leaves_its_place_to_others(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(num_actors=1), no_events)
        pool.prefetch("abc")
        for video in "abc":
            while video not in pool._pending or not pool._pending[video].done():
                await asyncio.sleep(0)
            assert (await pool.get(video)).prepared.video == video
        await settle()
        assert actors.asked == list("abc") and not pool._pending and not pool._ahead

    run(test())


def test_what_was_prepared_ahead_is_prepared_anew_where_its_machine_may_be_gone(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(num_actors=1), no_events)
        pool.prefetch("ab")
        await settle()
        assert (await pool.get("a", anew=True)).prepared.video == "a"
        assert (await pool.get("b")).prepared.video == "b"
        await settle()
        assert actors.asked == list("aba") and not pool._pending and not pool._ahead

    run(test())


def test_without_room_nothing_is_ahead(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(ahead_gib=0), no_events)
        pool.prefetch("ab")
        await settle()
        assert actors.asked == []
        assert (await pool.get("b")).prepared.video == "b"

    run(test())


def test_what_is_asked_for_now_waits_for_one_preparation_at_most(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(num_actors=2), no_events)
        actors.shut(*"abcdef")
        pool.prefetch("abcdef")
        await settle()
        now = [asyncio.create_task(pool.get(video)) for video in ("now", "then")]
        await settle()
        assert actors.asked == ["a", "b"]
        actors.gates["a"].set()
        await asyncio.gather(*now)
        assert actors.asked[2:4] == ["now", "then"] and actors.most_busy == 2
        actors.open()

    run(test())


def test_a_fault_ahead_is_told_to_whoever_asks_and_takes_no_room(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(ahead_settings(num_clips=0), no_events)
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
        pool = ClipPool(settings(), no_events)
        actors.failures["a"] = [ActorDiedError()]
        assert (await pool.get("a")).prepared.video == "a"
        assert (actors.num_started, len(actors.killed), pool.num_decoded, pool.status().num_losses) == (2, 1, 1, 1)

    run(test())


def test_a_video_that_ends_its_actor_twice_is_told(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(), no_events)
        actors.failures["a"] = [ActorDiedError(), ActorDiedError()]
        with pytest.raises(VideoError, match="Cannot read the video a: it ended the actor") as caught:
            await pool.get("a")
        assert caught.value.fault is VideoFault.CRASHED
        assert (await pool.get("b")).prepared.video == "b"

    run(test())


def test_no_more_actors_than_set_are_started(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(num_actors=3), no_events)
        await asyncio.gather(*(pool.get(str(number)) for number in range(20)))
        assert actors.num_started == actors.most_busy == 3

    run(test())


def test_an_actor_that_does_not_start_is_no_fault_of_the_video(actors: Actors) -> None:
    async def test() -> None:
        actors.start_failures = [INIT_RAISED, INIT_RAISED]
        pool = ClipPool(settings(), no_events)
        for wait in (pool.ready(), pool.get("a")):
            with pytest.raises(ResourceError, match="did not start"):
                await wait

    run(test())


def test_an_actor_whose_process_is_killed_while_it_starts_is_replaced(actors: Actors) -> None:
    async def test() -> None:
        actors.start_failures = [ActorDiedError()]
        pool = ClipPool(settings(), no_events)
        await pool.ready()
        assert (await pool.get("a")).prepared.video == "a" and pool.status().num_losses == 1

    run(test())


def test_an_actor_that_does_not_start_in_the_middle_of_a_run_is_started_once_more(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(), no_events)
        await pool.ready()
        actors.failures["a"], actors.start_failures = [ActorDiedError()], [INIT_RAISED]
        assert (await pool.get("a")).prepared.video == "a" and actors.num_started == 3
        actors.failures["b"], actors.start_failures = [ActorDiedError()], [INIT_RAISED, INIT_RAISED]
        with pytest.raises(ResourceError, match="did not start"):
            await pool.get("b")

    run(test())


def test_the_pool_grows_and_shrinks_while_it_prepares(actors: Actors) -> None:
    kinds: list[EventKind] = []

    async def test() -> None:
        pool = ClipPool(settings(), lambda kind, text, **fields: kinds.append(kind))
        actors.shut(*"abcd")
        callers = [asyncio.create_task(pool.get(video)) for video in "abcd"]
        await settle()
        assert actors.asked == ["a"] and pool.status().num_queued == 3
        pool.resize(3)
        await settle()
        assert actors.asked == ["a", "b", "c"] and pool.status().num_queued == 1
        pool.resize(1)
        await settle()
        assert sorted(member.state for member in pool.status().members) == ["draining", "draining", "serving"]
        assert not actors.killed  # what is busy ends its video first
        actors.open()
        assert [handle.prepared.video for handle in await asyncio.gather(*callers)] == list("abcd")
        await settle()
        (member,) = pool.status().members
        assert (member.state, member.num_jobs, len(actors.killed)) == ("serving", 0, 2)

    run(test())
    assert [kinds.count(kind) for kind in (EventKind.JOIN, EventKind.LEAVE, EventKind.LOSS)] == [3, 2, 0]


def test_close_ends_whoever_waits(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(settings(), no_events)
        actors.shut("a")
        pool.prefetch("bcd")
        waiting = asyncio.create_task(pool.get("a"))
        await settle()
        await pool.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(actors.killed) == actors.num_started == 1 and actors.num_busy == 0
        with pytest.raises(ResourceError, match="closed"):
            await pool.get("e")

    run(test())


def test_storage_that_does_not_answer_is_asked_again(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_module, "RETRY_AFTER_S", (0.0, 0.0))
    silent = RayTaskError("prepare", "", VideoError("no answer", VideoFault.UNREACHABLE))

    async def test() -> None:
        pool = ClipPool(settings(), no_events)
        actors.failures = {"a": [silent, silent], "b": [silent] * 3, "c": [refusal("c")]}
        assert (await pool.get("a")).prepared.video == "a"
        for video, num_asked in (("b", 3), ("c", 1)):
            with pytest.raises(VideoError):
                await pool.get(video)
            assert actors.asked.count(video) == num_asked

    run(test())


def test_a_run_is_told_of_a_process_that_is_waited_for_while_it_is(actors: Actors) -> None:
    async def test() -> None:
        pool = ClipPool(config, lambda kind, text, **fields: told.append((kind, text)))
        call = asyncio.create_task(pool.get("a.mp4"))
        await pool.ready()
        actors.told.append("a.mp4 waits for process 12 on host-a")
        while (EventKind.WAIT, "a.mp4 waits for process 12 on host-a") not in told:
            await asyncio.sleep(0.01)
        assert not call.done()
        actors.open()
        await call
        await pool.close()
        assert [kind for kind, _ in told].count(EventKind.WAIT) == 1

    config, told = settings(), list[tuple[EventKind, str]]()
    config.fleet.ping_every_s = 0.01
    actors.shut("a.mp4")
    run(test())
