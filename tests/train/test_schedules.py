"""The real driver, crews and books in simulated time: under deaths, delays, wishes and bad videos.

A schedule that fails is shrunk and printed; `pytest tests/train/test_schedules.py --hypothesis-seed=N` repeats one.
"""

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from museg_ray.append_log import read_rows
from museg_ray.checkpoints.state import DriverState, Notes
from museg_ray.config.schema import (
    AlgoConfig,
    Config,
    DataConfig,
    FleetConfig,
    PhaseConfig,
    RewardWeights,
    RolloutConfig,
    TrainConfig,
    VideoConfig,
)
from museg_ray.errors import LearnerError, LearnerLostError
from museg_ray.fleet.control import Wish
from museg_ray.fleet.errors import MemberLost
from museg_ray.metrics import names
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR
from museg_ray.runs.books import Books
from museg_ray.terminal.console import SafeConsole
from museg_ray.terminal.display import Display
from museg_ray.train.issues import IssueSource
from museg_ray.train.parts import Parts
from museg_ray.train.trainer import Trainer
from museg_ray.types import GroundingQuery
from tests.simulated import run_simulated
from tests.train.fake_parts import fake_parts
from tests.train.script import Script
from tests.whole_ledger import read_ledger

NUM_STEPS, PROMPTS, GROUP, MAX_REFILLS = 6, 3, 4, 2
TAKES_S = {"generate": 1.0, "update": 1.5, "update_weights": 0.2, "start": 4.0, "prepare": 0.3, "score": 0.05}
SLOW_S = 25.0
DIE, SLOW = "die", "slow"


@dataclass
class Schedule(Script):
    """What befalls which moment of a run, by the moment's number."""

    fates: dict[int, str] = field(default_factory=dict)
    num_moments: int = 0

    async def moment(self, who: str, what: str) -> None:
        number = self.num_moments
        self.num_moments += 1
        fate = self.fates.get(number)
        takes_s = TAKES_S.get(what, 0.01) * (1 + number % 7 / 7)
        await asyncio.sleep(SLOW_S if fate is SLOW else takes_s / 2)
        if fate is DIE:
            raise LearnerLostError("its rank died") if who == "learner" else MemberLost(f"{who} died")
        await asyncio.sleep(takes_s / 2)


class QuickCheckpoints:
    """Checkpoints without hashes and threads: a list of states, and the folders that the learner wrote."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self._folder, self._parts = folder, parts
        self._whole: list[Saved] = []
        self._under_way: asyncio.Task[None] | None = None

    def is_due(self, step: int) -> bool:
        return step % 2 == 0 or step == NUM_STEPS

    async def begin(self, state: DriverState) -> None:
        await self.finish()
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        await self._parts.learner.begin_checkpoint(folder)
        self._under_way = asyncio.create_task(self._complete(Saved(state, folder)))

    def raise_if_failed(self) -> None:
        if self._under_way is not None and self._under_way.done():
            self._under_way.result()

    async def finish(self) -> None:
        if self._under_way is not None:
            task, self._under_way = self._under_way, None
            await task

    async def newest(self) -> "Saved | None":
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)
            self._under_way = None
        return self._whole[-1] if self._whole else None

    async def _complete(self, saved: "Saved") -> None:
        await self._parts.learner.finish_checkpoint()
        self._whole.append(saved)


@dataclass(frozen=True)
class Saved:
    state: DriverState
    learner_dir: Path

    def read_state(self) -> DriverState:
        return self.state


@dataclass(frozen=True)
class Ended:
    error: LearnerError | None
    weight: float
    num_moments: int
    num_given_up: int
    """Queries and responses in quarantine for what befell those who had them, and not for what they are."""


def queries() -> list[GroundingQuery]:
    truths = (((1.0, 3.0),), ((1.0, 3.0), (5.0, 8.5)))
    return [GroundingQuery(f"train/{i}", f"/{i}.mp4", f"event {i}", truths[i % 2], 12.0) for i in range(11)]


def config_of(k: int, on_push: str, refill: str) -> Config:
    # The form alone is rewarded: then about every third group teaches nothing.
    weights = RewardWeights() if refill == "none" else RewardWeights(matching=0.0)
    phases = [
        PhaseConfig("one", 4, "Cite. {question}", weights),
        PhaseConfig("two", 2, weights=weights, fresh_optimizer=True),
    ]
    return Config(
        data=DataConfig(train="train.jsonl"),
        video=VideoConfig(num_actors=2),
        rollout=RolloutConfig(num_actors=2, group_size=GROUP, max_num_seqs=2 * GROUP, on_push=on_push),
        algo=AlgoConfig(correction="truncate"),
        train=TrainConfig(PROMPTS, phases, max_staleness=k, refill=refill, max_refills=MAX_REFILLS),
        fleet=FleetConfig(max_restarts=1000),
    )


async def train(folder: Path, config: Config, schedule: Schedule, wishes: list[Any], unreadable: set[str]) -> Ended:
    """One run; wishes are (when, role, size), or (when, "stop", 0), after which the same trainer goes on."""
    display = Display("test", config.train.phases, NUM_STEPS, SafeConsole(file=StringIO()))
    books = Books(config, folder, display, Notes())
    source = IssueSource(config, {"train.jsonl": queries()})
    parts = fake_parts(config, PACKAGED_MODEL_DIR, None, books.events.add, schedule, unreadable)
    checkpoints: Any = QuickCheckpoints(folder, parts)
    trainer = Trainer(config, parts, source, books, checkpoints)

    async def wish() -> None:
        for when_s, role, size in sorted(wishes):
            await asyncio.sleep(when_s)
            await parts.control.wish(Wish("scale", {role: size}))  # type: ignore[attr-defined]

    wishing, error = asyncio.create_task(wish()), None
    try:
        await trainer.run()
    except LearnerError as caught:
        error = caught
    finally:
        wishing.cancel()
        await asyncio.gather(wishing, return_exceptions=True)
        await parts.close()
        books.close()
    # Of a text that cannot be scored wherever it is the fake scorer says no more than this.
    num_given_up = sum(set(row["reasons"]) != {"died"} for row in read_rows(folder / "quarantine.jsonl"))
    weight: float = parts.learner.weight  # type: ignore[attr-defined]
    return Ended(error, weight, schedule.num_moments, num_given_up)


def check_books(folder: Path, config: Config, ended: Ended) -> None:
    ledger = read_ledger(folder / "ledger.jsonl")  # which refuses an issue that ends twice
    assert all(row.outcome is not None for row in ledger), "every issue ends"
    if ended.error is not None:
        assert "3 times without a step of progress" in str(ended.error)
        return
    rows = list(read_rows(folder / "metrics.jsonl"))
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert all(row[names.ROLLOUT_AGE_MAX] <= config.train.max_staleness for row in rows), "no token is too old"
    versions = [row[names.WEIGHTS_VERSION] for row in rows]
    assert versions == sorted(set(versions))
    issued, refills = Counter(row.step for row in ledger), {row["step"]: row[names.REWARD_REFILLS] for row in rows}
    most = 0 if config.train.refill == "none" else MAX_REFILLS
    # A step whose groups all teach nothing has no row.
    assert issued == {step: PROMPTS + refills.get(step, most) for step in range(1, NUM_STEPS + 1)}
    assert max(refills.values()) <= most
    given_up = [(row["issue_id"], row.get("response_index")) for row in read_rows(folder / "quarantine.jsonl")]
    assert len(set(given_up)) == len(given_up), "nothing is quarantined twice"
    failed = {row.issue_id for row in ledger if row.outcome == "failed"}
    assert {issue_id for issue_id, index in given_up if index is None} == failed
    logged = pq.read_table(folder / "rollouts.parquet", columns=["issue_id", "response_index"]).to_pylist()
    seen = Counter((row["issue_id"], row["response_index"]) for row in logged)
    assert set(seen.values()) == {1}, "no response is logged twice"
    sampled = {row.issue_id for row in ledger if row.weight_version is not None}
    assert {issue_id for issue_id, _ in seen} == sampled and len(seen) == GROUP * len(sampled)


def run_schedule(
    fates: dict[int, str], k: int = 0, on_push: str = "continue", refill: str = "none", wishes: Any = (), bad: Any = ()
) -> Ended:
    config, schedule = config_of(k, on_push, refill), Schedule(fates)
    with tempfile.TemporaryDirectory(dir=_fast_dir()) as name:
        ended: Ended = run_simulated(train(Path(name), config, schedule, list(wishes), set(bad)))
        check_books(Path(name), config, ended)
    return ended


def _fast_dir() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


FATES = st.dictionaries(st.integers(0, 400), st.sampled_from([DIE, DIE, SLOW]), max_size=14)
WISHES = st.lists(
    st.tuples(st.floats(0, 10), st.sampled_from(["rollout", "reward", "clips"]), st.integers(1, 4)), max_size=4
)
BAD = st.sets(st.sampled_from(["0.mp4", "3.mp4", "4.mp4"]), max_size=2)


@settings(max_examples=100)
@given(FATES, st.integers(0, 3), st.sampled_from(["continue", "restart", "wait"]), WISHES, BAD)
@example({}, 0, "continue", [], set())
def test_whatever_befalls_the_parts_every_issue_ends_once_and_no_token_is_too_old(
    fates: dict[int, str], k: int, on_push: str, wishes: list[Any], bad: set[str]
) -> None:
    run_schedule(fates, k, on_push, "none", wishes, bad)


@settings(max_examples=30)
@given(FATES, st.integers(0, 2), WISHES)
def test_refills_keep_the_books_whatever_befalls_the_parts(fates: dict[int, str], k: int, wishes: list[Any]) -> None:
    run_schedule(fates, k, refill="zero_variance", wishes=wishes)


@settings(max_examples=30)
@given(FATES, WISHES)
def test_in_lock_step_deaths_of_rollout_reward_and_clip_actors_change_no_number(
    fates: dict[int, str], wishes: list[Any]
) -> None:
    """Issues keep id and seed wherever they are sampled; only the learner's death makes weights of another version."""

    class NotTheLearner(Schedule):
        async def moment(self, who: str, what: str) -> None:
            if who == "learner":
                await asyncio.sleep(1.0)
            else:
                await super().moment(who, what)

    def run(schedule: Schedule, wished: list[Any]) -> Ended:
        with tempfile.TemporaryDirectory(dir=_fast_dir()) as name:
            ended: Ended = run_simulated(train(Path(name), config_of(0, "continue", "none"), schedule, wished, set()))
        assert ended.error is None
        return ended

    disturbed, calm = run(NotTheLearner(fates), wishes), run(NotTheLearner(), [])
    assert calm.num_given_up == 0
    assume(disturbed.num_given_up == 0)  # what was there at two deaths is quarantined, and trained on by nobody
    assert disturbed.weight == calm.weight


def test_the_schedules_reach_all_of_a_run() -> None:
    assert 250 < run_schedule({}).num_moments < 600
