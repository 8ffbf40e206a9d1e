"""`museg bench learner` on a small shape; the whole of it takes minutes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from museg_ray.bench import learner
from museg_ray.bench.apart import Round, compare_ways
from museg_ray.bench.learner import FACTS, bench_learner, compare, make_targets, measure_round
from museg_ray.bench.learner_case import Group, Shape, build_3b, load_model, make_group
from museg_ray.bench.learner_way import (
    ONE_CALL,
    ROWS,
    TOWER_WAYS,
    WINDOWS,
    Numbers,
    gradient,
    make_forward,
    measure,
    run_pass,
)
from museg_ray.cli.bench import bench
from museg_ray.errors import ResourceError
from museg_ray.model.qwen_vl import PACKAGED_MODEL_DIR, load_vision_spec

WAYS = (ROWS, "split")
STEPS = 2
SMALL = Shape(STEPS, group_size=3, completion_tokens=(3, 9))
CPU = torch.device("cpu")
NEEDS_NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def measured() -> Round:
    return measure_round(WAYS, "tiny", "cpu", STEPS)


@pytest.fixture(scope="module")
def tower() -> Round:
    return measure_round(TOWER_WAYS, "tiny", "cpu", STEPS)


@pytest.fixture(scope="module")
def small_group() -> Group:
    return make_group(SMALL, load_vision_spec(PACKAGED_MODEL_DIR), CPU)


def numbers(way: str, group: Group) -> Numbers:
    model = load_model("tiny", CPU)
    logprobs = run_pass(make_forward(way, model, load_vision_spec(PACKAGED_MODEL_DIR)), group)
    return {"logprobs": logprobs, "gradient": gradient(model)}


def test_both_ways_compute_the_same_and_the_packed_one_computes_less(measured: Round) -> None:
    rows, ours = measured[ROWS], measured["split"]
    assert ours["logprob_gap"] < 1e-4
    assert 0 < ours["gradient_gap"] < 1e-4, "0: the same way was measured twice"
    assert rows["patches"] == 8 * ours["patches"] == 8 * STEPS * 120
    assert ours["tokens"] < rows["tokens"] and ours["peak_mib"] < rows["peak_mib"]
    assert all(facts["seconds"] > 0 and facts["peak_mib"] > 0 for facts in measured.values())


def test_the_tower_computes_the_same_in_fewer_calls(tower: Round) -> None:
    """museg-tiny: a layer with windows of three lengths, six a frame, and one with whole frames."""
    windows, ours = tower[WINDOWS], tower[ONE_CALL]
    assert windows["calls"] == 2 * STEPS * (6 + 1) and ours["calls"] == 3 + 1
    assert ours["logprob_gap"] < 1e-4 and ours["gradient_gap"] < 1e-4
    assert max(ours["logprob_gap"], ours["gradient_gap"]) > 0, "0: the same way was measured twice"
    assert windows["patches"] == ours["patches"] == 2 * STEPS * 60
    rows = {str(row["measured"]): row for row in compare_ways("small", FACTS, [tower])}
    assert rows["seconds: tower / tower by windows"]["ratio"] == ours["seconds"] / windows["seconds"]
    assert rows["calls: tower / tower by windows"]["value"] == 4
    speed, memory, *gaps = make_targets([tower], is_exact=True)
    assert (speed.target, memory.target) == (1.5, 1.2) and "than tower by windows" in speed.name
    assert [gap.met for gap in gaps] == [True, True]


def test_every_fact_has_a_row_and_every_promise_a_target(measured: Round) -> None:
    rows = compare_ways("small", FACTS, [measured])
    assert [row["measured"] for row in rows] == [f"{fact}: split / row by row" for fact in FACTS[:-1]], "no calls"
    speed, memory, *gaps = make_targets([measured], is_exact=True)
    assert speed.value == pytest.approx(1 / float(rows[0]["ratio"]))
    assert speed.value == pytest.approx(measured[ROWS]["seconds"] / measured["split"]["seconds"])
    assert memory.value == rows[1]["ratio"] == measured["split"]["peak_mib"] / measured[ROWS]["peak_mib"]
    assert [gap.met for gap in gaps] == [True, True]


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    rounds = [{"a": {"s": base}, "b": {"s": ours}} for base, ours in ((1.0, 2.0), (10.0, 30.0), (2.0, 8.0))]
    (row,) = compare_ways("small", ("s",), rounds)
    assert (row["value"], row["against"], row["ratio"]) == (8.0, 2.0, 3.0)


def test_targets_are_met_from_5_times_and_a_quarter_on(measured: Round) -> None:
    def targets(seconds: float, peak_mib: float) -> list[bool]:
        ours = measured["split"] | {"seconds": seconds, "peak_mib": peak_mib}
        rows = measured[ROWS] | {"seconds": 10.0, "peak_mib": 1000.0}
        return [target.met for target in make_targets([{ROWS: rows, "split": ours}], is_exact=False)]

    assert targets(2.0, 250.0) == [True, True]
    assert targets(2.1, 251.0) == [False, False]


@pytest.mark.parametrize("broken_way", WAYS)
def test_wrong_positions_of_one_way_miss_the_targets(small_group: Group, measured: Round, broken_way: str) -> None:
    row = replace(small_group.row, positions=small_group.row.positions * 2)
    broken = replace(small_group, row=row)
    found = {way: numbers(way, broken if way == broken_way else small_group) for way in WAYS}
    gaps = compare(found[ROWS], found["split"])
    assert gaps["logprob_gap"] > 1e-4 and gaps["gradient_gap"] > 1e-4
    round_ = measured | {"split": measured["split"] | gaps}
    assert [target.met for target in make_targets([round_], is_exact=True)][2:] == [False, False]


def test_a_missing_kl_shows_in_the_gradient_alone(small_group: Group) -> None:
    without_kl = replace(small_group, reference_gaps=torch.zeros_like(small_group.reference_gaps))
    gaps = compare(numbers(ROWS, small_group), numbers("split", without_kl))
    assert gaps["logprob_gap"] < 1e-4 < gaps["gradient_gap"]


def test_the_command_prints_the_table_and_writes_it_as_json(
    measured: Round, tower: Round, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "measure_round", lambda ways, *_: tower if ways == TOWER_WAYS else measured)
    monkeypatch.setattr(learner, "VIDEO_STEPS", (STEPS,))
    file = tmp_path / "learner.json"
    command = ["learner", "--rounds", "1", "--json", str(file)]
    done = CliRunner().invoke(bench, command, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    written = json.loads(file.read_text())
    assert written["bench"] == "learner" and len(written["targets"]) == 8
    assert [row["case"] for row in written["rows"]] == ["60 video tokens"] * 8
    assert all(word in done.output for row in written["rows"] for word in (row["measured"], row["case"]))


@NEEDS_NO_GPU
def test_what_needs_a_gpu_is_one_clear_error_without_one() -> None:
    with pytest.raises(ResourceError, match=r"--model 3b needs a GPU, and torch sees none here; use --model tiny"):
        bench_learner("3b", 1, lambda _: None)


def test_a_measurement_that_fails_says_which_and_why() -> None:
    with pytest.raises(
        ResourceError, match=r"Measuring measure_way\('no_such_way', .*\) ended with exit code 1: .*no_such_way"
    ):
        measure_round(("no_such_way",), "tiny", "cpu", 1)


def test_the_3b_model_runs_both_ways_at_smaller_widths() -> None:
    text = {
        "hidden_size": 128,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "vocab_size": 512,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [1],
    }
    found = {}
    for way in WAYS:
        model = build_3b(CPU, text_config=text, vision_config=vision).train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.dtype == torch.bfloat16 and model.lm_head.weight is model.get_input_embeddings().weight
        _, found[way] = measure(way, model, SMALL)
    gaps = compare(found[ROWS], found["split"])
    assert gaps["logprob_gap"] < 0.05 and gaps["gradient_gap"] < 0.05
