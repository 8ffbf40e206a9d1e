"""Groups of equal rewards whose places other queries take."""

import json
from pathlib import Path

import pytest

from museg_ray.config.schema import PhaseConfig
from museg_ray.metrics import names
from tests.train.noting import Run, queries

ONE_PHASE = [PhaseConfig("only", 1, "{question}")]
ALL_IDS = {query.query_id for query in queries("main", 9) + queries("main", 9, 2)}


def refilled(folder: Path, model_dir: Path, max_refills: int, equal: set[str]) -> Run:
    run = Run(folder, model_dir, ONE_PHASE, set(), refill="zero_variance", max_refills=max_refills)
    run.parts.equal = equal
    return run


def first_queries(folder: Path, model_dir: Path) -> set[str]:
    """What the step draws first."""
    return {group.issue.query.query_id for group in Run(folder, model_dir, ONE_PHASE, set()).to_end().parts.updates[0]}


def events(run: Run) -> list[str]:
    rows = map(json.loads, (run.folder / "events.jsonl").read_text().splitlines())
    return [row["text"] for row in rows if row["kind"] == "refill"]


def test_the_place_of_a_group_that_teaches_nothing_goes_to_another_query(tmp_path: Path, tiny_model_dir: Path) -> None:
    equal = {min(first_queries(tmp_path, tiny_model_dir))}
    run = refilled(tmp_path, tiny_model_dir, 9, equal).to_end()
    (trained,) = run.parts.updates
    assert len(trained) == 2 and equal.isdisjoint(group.issue.query.query_id for group in trained)
    metrics = run.results[0].metrics
    num_refills = metrics[names.REWARD_REFILLS]
    assert num_refills >= 1 and metrics[names.REWARD_EQUAL_GROUPS_SHARE] == num_refills / (2 + num_refills)
    assert [row["query_id"] for row in run.issued if row["outcome"] == "filtered"] == list(equal) * int(num_refills)
    assert events(run) == []


@pytest.mark.parametrize(("max_refills", "num_lacking"), [(0, 1), (3, 1)])
def test_a_step_says_so_when_it_has_replaced_as_many_groups_as_it_may(
    tmp_path: Path, tiny_model_dir: Path, max_refills: int, num_lacking: int
) -> None:
    one = min(first_queries(tmp_path, tiny_model_dir))
    others = ALL_IDS - first_queries(tmp_path, tiny_model_dir)
    run = refilled(tmp_path, tiny_model_dir, max_refills, {one} | others).to_end()
    (trained,) = run.parts.updates
    assert len(trained) == 2 - num_lacking
    assert run.results[0].metrics[names.REWARD_REFILLS] == max_refills
    (text,) = events(run)
    assert text == (
        f"step 1 trains fewer groups (1 less): {max_refills + 1} earned the same in all their responses, and "
        f"train.max_refills was reached after {max_refills}"
    )
