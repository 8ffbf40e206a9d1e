"""`museg bench pipeline` on small sizes; the whole of it takes a minute or two."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from museg_ray.bench import pipeline
from museg_ray.bench.pipeline import Sizes, bench_pipeline
from museg_ray.bench.pipeline_books import measure_books, write_ledger
from museg_ray.bench.pipeline_fakes import GROUP_SIZE, FakeWorker, Waits
from museg_ray.bench.pipeline_run import make_config, train_fakes
from museg_ray.bench.result import BenchResult
from museg_ray.bench.simulated_loop import SimulatedLoop
from museg_ray.cli.bench import bench
from museg_ray.clock import now_s
from museg_ray.ledger.ledger import Ledger, Outcome
from museg_ray.metrics import names
from tests.simulated import run_simulated
from tests.whole_ledger import read_ledger

SMALL = Sizes(
    wait_s=0.005,
    num_steps=1,
    group_s=0.002,
    num_scaling_steps=1,
    num_actors=(2, 3),
    prompts_per_step=4,
    num_driver_steps=2,
    num_issues=28,
    num_rounds=1,
)
OVERLAP = {f"step, k = {k} / longer wait" for k in (0, 1)}
BOOKS = {"step's books / first issue", "slowest of 10 / first issue", "checkpoint / first issue"}


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return bench_pipeline(lambda text: None, sizes=SMALL)


def cases(result: BenchResult, measured: str) -> list[str | float]:
    return [row["case"] for row in result.rows if row["measured"] == measured]


def test_every_load_number_of_actors_and_book_has_a_row(result: BenchResult) -> None:
    for what in OVERLAP:
        assert cases(result, what) == ["rollout:learner 1:1", "rollout:learner 2:1", "rollout:learner 1:2"]
    assert cases(result, "step / one actor's share") == [f"rollout actors: {count}" for count in (1, 2, 3)]
    assert cases(result, "driver's CPU time / step") == ["rollout actors: 2", "rollout actors: 3"]
    for what in (*BOOKS, "opening them / first issue"):
        assert cases(result, what) == ["issue 28"]
    assert len({tuple(row) for row in result.rows}) == 1, "a table needs the same columns in all rows"
    assert all(row["ratio"] == float(row["ms"]) / float(row["against"]) > 0 for row in result.rows)


def test_every_promise_has_a_target(result: BenchResult) -> None:
    assert [target.target for target in result.targets] == [1.15, 1.15, 1.15, 0.10, 0.02, 5.0, 200.0]
    assert all(target.met == (target.value <= target.target) for target in result.targets)
    driver = next(row for row in reversed(result.rows) if row["measured"] == "driver's CPU time / step")
    assert result.targets[4].value == driver["ratio"]
    assert result.targets[4].name == "driver's CPU time / step, rollout actors: 3, 32 responses"


@pytest.mark.parametrize(
    ("max_staleness", "rollout_s", "update_s", "step_s"),
    [(0, 2.0, 3.0, 5.0), (1, 2.0, 3.0, 3.0), (1, 4.0, 3.0, 4.0), (1, 3.0, 3.0, 3.0)],
)
def test_a_step_takes_the_sum_of_both_in_turns_and_the_longer_one_overlapping(
    max_staleness: int, rollout_s: float, update_s: float, step_s: float
) -> None:
    """In simulated time, so exactly. Engines with more room than a step's groups would be quicker than that."""
    config = make_config(6, num_actors=2, prompts_per_step=4, groups_per_actor=2, max_staleness=max_staleness)
    steps = train_fakes(config, Waits(rollout_s, update_s), make_loop=SimulatedLoop)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step[names.TIME_STEP_S] for step in steps[2:]] == pytest.approx([step_s] * 4)


def test_groups_come_in_over_the_spread_and_nothing_else_takes_time() -> None:
    async def take(what: Callable[[], Awaitable[object]]) -> float:
        start_s = now_s()
        await what()
        return now_s() - start_s

    async def take_all() -> tuple[list[float], float, float]:
        waits = Waits(rollout_s=2.0, update_s=8.0, spread_s=10.0)
        groups = [await take(waits.rollout) for _ in range(200)]
        return groups, await take(waits.update), await take(FakeWorker(waits).ping)

    groups, update, ping = run_simulated(take_all())
    assert 2.0 <= min(groups) < 2.1 and 11.9 < max(groups) <= 12.0
    assert (update, ping) == (pytest.approx(8.0), 0.0)


def test_a_ledger_written_fast_is_that_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    write_ledger(path, 10_001)
    rows = read_ledger(path)
    assert [row.issue_id for row in rows] == list(range(10_001))
    assert {row.outcome for row in rows} == {Outcome.TRAINED}
    ledger = Ledger(path)
    assert (ledger.num_issues, ledger.open_issues) == (10_001, ())


def test_no_book_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first, late = measure_books(14, num_rounds=2)
    assert first.keys() == late.keys() and min(*first.values(), *late.values()) > 0
    train_fakes(make_config(1, 1, 1, 1), Waits(0.0))
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_table_and_writes_it_as_json(
    result: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "bench_pipeline", lambda tell: result)
    file = tmp_path / "pipeline.json"
    done = CliRunner().invoke(bench, ["pipeline", "--json", str(file)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    written = json.loads(file.read_text())
    assert written["bench"] == "pipeline"
    assert written["rows"] == list(result.rows) and len(written["targets"]) == len(result.targets)
    assert all(str(row["measured"]) in done.output and str(row["case"]) in done.output for row in result.rows)


def test_the_fakes_give_whole_groups_that_differ_in_their_rewards() -> None:
    (step,) = train_fakes(make_config(1, 1, 2, 2), Waits(1.0), make_loop=SimulatedLoop)
    assert step[names.ROLLOUT_RESPONSES_PER_S] == pytest.approx(2 * GROUP_SIZE / 1.0)
    assert step[names.REWARD_EQUAL_GROUPS_SHARE] == 0.0
