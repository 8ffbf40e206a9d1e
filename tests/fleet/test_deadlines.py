"""Every call of every actor has a deadline in the one table, and ends at it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import ray

from museg_ray.config.learning import LearnerConfig
from museg_ray.config.schema import Config, FleetConfig, RewardConfig, RewardWeights, RolloutConfig, WeightsConfig
from museg_ray.errors import LearnerError, LearnerLostError, MusegError, ResourceError, VideoError
from museg_ray.events import no_events
from museg_ray.fleet.control import ASKED, Caller, Mailbox, RayControl, Wish
from museg_ray.fleet.deadlines import FETCH, Deadline, DeadlineMissed, deadlines, within
from museg_ray.learner.actor import LearnerActor, LearnerHandle
from museg_ray.rewards.actor import RewardActor
from museg_ray.rewards.pool import RewardPool
from museg_ray.rollout.actor import RolloutActor
from museg_ray.types import Unscored
from museg_ray.video.actor import ClipPool, PrepareActor
from museg_ray.weights.shared import HostActor, _Machine
from tests.fleet.staged import Stage, StagedWorker, an_issue
from tests.ledger.test_ledger import a_group
from tests.simulated import run_simulated

LIMIT_S = 100.0
ACTORS = {
    "rollout": RolloutActor,
    "reward": RewardActor,
    "clips": PrepareActor,
    "learner": LearnerActor,
    "mailbox": Mailbox,
    "weights": HostActor,
}
ROWS_OF_READY: dict[str, tuple[str, ...]] = {"clips.ready": ("clips.start", "clips.ping"), "weights.close": ()}
"""One method that two calls of the table are, and one that nobody calls: its actor is killed."""
CONFIG = Config(
    rollout=RolloutConfig(start_timeout_s=LIMIT_S, request_timeout_s=LIMIT_S, num_actors=1),
    learner=LearnerConfig(start_timeout_s=LIMIT_S, step_timeout_s=LIMIT_S),
    rewards=RewardConfig(response_timeout_s=LIMIT_S / 4),
    fleet=FleetConfig(ping_timeout_s=LIMIT_S, max_restarts=0),
    weights=WeightsConfig(timeout_s=LIMIT_S),
)
ROWS = deadlines(CONFIG)


@pytest.fixture(autouse=True)
def calls_of_no_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given up here are coroutines, which Ray cannot take back."""
    monkeypatch.setattr(ray, "cancel", lambda *_, **__: None)


@pytest.mark.parametrize("role", ACTORS)
def test_invariant_every_method_of_an_actor_has_its_row(role: str) -> None:
    methods = [name for name, _ in inspect.getmembers(ACTORS[role], callable) if not name.startswith("_")]
    assert methods
    for method in methods:
        for row in ROWS_OF_READY.get(f"{role}.{method}", (f"{role}.{method}",)):
            assert row in ROWS


async def never(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


class Hung:
    """A worker whose process stands still: from the start on, or once it serves."""

    def __init__(self, starts: bool) -> None:
        self._starts = starts
        self.is_killed = False

    async def placed(self) -> bool:
        return False

    async def start(self) -> None:
        if not self._starts:
            await never()

    ping = score = prepare = close = never

    def kill(self) -> None:
        self.is_killed = True


async def rollout_start() -> None:
    stage = Stage(1, max_restarts=0)
    stage.set_up = lambda worker: setattr(worker, "on_start", never)
    stage._config.rollout.start_timeout_s = LIMIT_S
    await stage.pool.ready()


async def _rollout(stands: Callable[[StagedWorker], None], use: Callable[[Stage], Awaitable[Any]]) -> None:
    stage = Stage(1, timeout_s=LIMIT_S, max_restarts=0, ping_timeout_s=LIMIT_S)
    await stage.pool.ready()
    stands(stage.workers[0])
    await use(stage)


async def rollout_generate() -> None:
    await _rollout(lambda worker: setattr(worker, "on_generate", never), lambda stage: stage.sample(1))


async def rollout_update_weights() -> None:
    async def use(stage: Stage) -> None:
        await stage.pool.publish(1, "weights")
        await stage.sample(1)

    await _rollout(lambda worker: setattr(worker, "on_update", never), use)


async def rollout_ping() -> None:
    async def use(stage: Stage) -> None:
        await asyncio.sleep(LIMIT_S + 3)
        await stage.sample(1)

    await _rollout(lambda worker: setattr(worker, "ping", never), use)


async def rollout_close() -> None:
    await _rollout(lambda worker: setattr(worker, "close", never), lambda stage: stage.pool.close())


async def _reward(starts: bool, use: Callable[[RewardPool], Awaitable[Any]]) -> None:
    pool = RewardPool(CONFIG, no_events, lambda _cpus, _place: Hung(starts))
    await pool.ready()
    await use(pool)


async def reward_start() -> None:
    await _reward(False, never)


async def reward_score() -> None:
    async def use(pool: RewardPool) -> None:
        first, *_ = await pool.score(a_group(), RewardWeights())
        assert isinstance(first, Unscored) and "took longer than 100 s" in first.reasons[0]
        raise DeadlineMissed(first.reasons[1])

    await _reward(True, use)


async def reward_ping() -> None:
    async def use(pool: RewardPool) -> None:
        await asyncio.sleep(LIMIT_S + 3)
        await pool.score(a_group(), RewardWeights())

    await _reward(True, use)


async def reward_close() -> None:
    await _reward(True, lambda pool: pool.close())


async def _clips(starts: bool, use: Callable[[ClipPool], Awaitable[Any]]) -> None:
    pool = ClipPool(CONFIG, no_events, lambda: Hung(starts))
    await pool.ready()
    await use(pool)


async def clips_start() -> None:
    await _clips(False, never)


async def clips_ping() -> None:
    await _clips(True, lambda pool: pool.get("a.mp4"))


async def clips_prepare() -> None:
    async def use(pool: ClipPool) -> None:
        pool._crew._watch = never  # type: ignore[method-assign]  # else its pings would show it first
        await pool.get("a.mp4")

    pool = ClipPool(Config(fleet=FleetConfig(max_restarts=1)), no_events, lambda: Hung(starts=True))
    pool._crew._watch = never  # type: ignore[method-assign]
    await pool.ready()
    await use(pool)


async def clips_close() -> None:
    await _clips(True, lambda pool: pool.close())


class _Standing:
    """An actor's handle; no call of it ever returns but those that are named."""

    def __init__(self, *answered: str) -> None:
        self._answered = answered

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": staticmethod(self._done if name in self._answered else never)})

    async def _done(self, *_: Any) -> Any:
        return "host", 1


def _learner(*answered: str, num_ranks: int = 1) -> LearnerHandle:
    learner = LearnerHandle.__new__(LearnerHandle)
    learner._config, learner._deadlines, learner._calls = CONFIG, ROWS, {}
    learner._actors = [_Standing(*answered)] * num_ranks
    learner._make_actors = lambda: None  # type: ignore[method-assign]
    learner._places, learner._model_dir, learner._checkpoint = None, None, None  # type: ignore[assignment]
    return learner


LEARNER_CALLS: dict[str, Callable[[], Awaitable[Any]]] = {
    "first_answer": lambda: _learner().ready(),
    "open_store": lambda: _learner("ping", num_ranks=2).ready(),
    "start": lambda: _learner("ping", "open_store").ready(),
    "ping": lambda: _learner().ping(),
    **{
        method: lambda method=method: _learner("ping")._all(method)  # type: ignore[misc]
        for method in (
            "load",
            "update",
            "gaps",
            "weight_layout",
            "write_weights",
            "start_phase",
            "begin_checkpoint",
            "finish_checkpoint",
            "export_model",
        )
    },
}


async def mailbox_exchange() -> None:
    control = RayControl.__new__(RayControl)
    control._mailbox, control._deadlines = _Standing(), ROWS
    assert await control.exchange({}, {}) == {}


def _machine() -> _Machine:
    machine = _Machine.__new__(_Machine)
    machine._actor, machine._deadlines, machine._config = _Standing(), ROWS, CONFIG.weights
    return machine


TRIALS: dict[str, Callable[[], Awaitable[Any]]] = {
    **{name.replace("_", ".", 1): trial for name, trial in list(globals().items()) if name.split("_")[0] in ACTORS},
    **{f"learner.{method}": call for method, call in LEARNER_CALLS.items()},
    **{
        f"weights.{method}": lambda m=method: _machine().call(m)  # type: ignore[misc]
        for method in ("reserve", "begin", "fetch", "commit", "address")
    },
}
ENDS_QUIETLY = {"rollout.close", "reward.close", "clips.close", "mailbox.exchange"}
"""The member is killed all the same; a mailbox is asked again."""
ASKED_ELSEWHERE = {"clips.send", "mailbox.status", "mailbox.wish"}
"""By `ray.get`, of processes without an event loop."""


@pytest.mark.parametrize("row", sorted(set(ROWS) - ASKED_ELSEWHERE))
def test_a_call_that_never_returns_ends_at_its_deadline(row: str) -> None:
    async def trial() -> float:
        began_s = asyncio.get_running_loop().time()
        if row in ENDS_QUIETLY:
            await TRIALS[row]()
        else:
            with pytest.raises((DeadlineMissed, MusegError)):
                await TRIALS[row]()
        return asyncio.get_running_loop().time() - began_s

    tries = {"clips.prepare": 2, "reward.score": 3}.get(row, 1)
    took_s = run_simulated(trial())
    assert ROWS[row].limit_s <= took_s <= tries * (ROWS[row].limit_s + 5)


def test_those_who_ask_from_elsewhere_have_deadlines_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from museg_ray.video import loader

    seen: list[float] = []

    def get(reference: Any, timeout: float) -> Any:
        seen.append(timeout)
        raise ray.exceptions.GetTimeoutError("late")

    monkeypatch.setattr(ray, "get", get)
    caller = Caller.__new__(Caller)
    caller._run, caller._mailbox = "mine", _Standing()
    for ask in (caller.status, lambda: caller.wish(Wish("stop"))):
        with pytest.raises(ResourceError, match="does not answer"):
            ask()
    handle = type("Handle", (), {"prepared": type("P", (), {"video": "a.mp4"}), "origin": _Standing()})
    with pytest.raises(VideoError, match="does not answer"):
        loader._fetch(handle)  # type: ignore[arg-type]
    assert seen == [ASKED.limit_s, ASKED.limit_s, FETCH.limit_s]


def test_a_learner_that_stands_still_is_noticed_by_its_pings_long_before_the_deadline() -> None:
    async def trial() -> float:
        learner = _learner()
        learner._config = Config(learner=CONFIG.learner, fleet=FleetConfig(ping_timeout_s=5.0))
        learner._deadlines = deadlines(learner._config)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(LearnerLostError, match=r"the learner's ping took longer than 5 s \(fleet.ping"):
            await learner.write_weights(3, [])
        return asyncio.get_running_loop().time() - began_s

    assert run_simulated(trial()) < 15


def test_what_another_rank_says_of_a_death_is_told_and_not_the_death_alone() -> None:
    class Dying(_Standing):
        async def _ping(self) -> None:
            raise ray.exceptions.RayActorError

        async def _update(self, *_: Any) -> None:
            await asyncio.sleep(3.0)
            raise LearnerError("rank 1: no memory left")

        def __getattr__(self, name: str) -> Any:
            return type("Method", (), {"remote": self._ping if name == "ping" else self._update})

    async def trial() -> None:
        learner = _learner()
        learner._actors = [Dying()]
        with pytest.raises(LearnerError, match="no memory left"):
            await learner._all("update")

    run_simulated(trial())


def test_a_learner_that_does_two_things_says_both() -> None:
    async def trial() -> None:
        learner = _learner("ping")
        first = asyncio.create_task(learner._all("finish_checkpoint"))
        await asyncio.sleep(5)
        second = asyncio.create_task(learner._all("update"))
        await asyncio.sleep(2)
        assert learner.doing == "finish_checkpoint since 7 s and update since 2 s"
        first.cancel()
        await asyncio.sleep(1)
        assert learner.doing == "update since 3 s"
        second.cancel()

    run_simulated(trial())


def test_an_answer_that_came_while_this_process_stood_still_counts() -> None:
    async def trial() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        loop.call_later(1.001, lambda: answer.set_result("here"))
        return await within(Deadline(1.0), "a call", answer)

    assert run_simulated(trial()) == "here"


def test_a_member_without_room_keeps_nobody_from_beginning() -> None:
    async def trial() -> None:
        stage = Stage(3)
        stage.set_up = lambda worker: setattr(worker, "on_placed", never if worker.name == "worker-2" else _at_once)
        await asyncio.wait_for(stage.pool.ready(), 20)
        assert [member.state for member in stage.pool.status().members] == ["serving", "serving", "waiting"]
        assert (await stage.sample(1)).issue == an_issue(1)
        await stage.pool.close()

    run_simulated(trial())


def test_an_engine_that_never_comes_up_ends_the_run_the_second_time() -> None:
    async def trial() -> float:
        stage = Stage(2)
        stage.set_up = lambda worker: setattr(worker, "on_start", never)
        with pytest.raises(ResourceError, match=r"its start took longer than 2400 s"):
            await stage.pool.ready()
        return asyncio.get_running_loop().time()

    assert run_simulated(trial()) < 3 * 2400


def test_who_is_in_the_room_that_the_run_keeps_leaves_last() -> None:
    async def trial() -> None:
        stage = Stage(3)
        stage.set_up = lambda worker: setattr(worker, "is_least", worker.name == "worker-0")
        await stage.pool.ready()
        stage.pool.resize(1)
        await asyncio.sleep(1)
        assert [member.name for member in stage.pool.status().members] == ["rollout-0"]
        await stage.pool.close()

    run_simulated(trial())


async def _at_once() -> None:
    pass
