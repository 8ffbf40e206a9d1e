"""`museg reward explain` and `museg reward score`."""

import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from museg_ray.cli.main import app
from museg_ray.cli.train import demo_config_path
from museg_ray.config.schema import RewardConfig, RewardWeights
from museg_ray.errors import ConfigError, DataError, ResourceError
from museg_ray.rewards.golden import golden_cases
from museg_ray.rewards.recipe import Recipe
from museg_ray.types import GroundingQuery

RESPONSE = "<think>from 12.3 to 15, [b]then[/b] 31</think><answer>12.3-15 31-31.10</answer>"


def museg_reward(*arguments: str, stdin: str | bytes = "") -> str:
    result = CliRunner().invoke(app, ["reward", *arguments], input=stdin)
    if result.exception is not None:
        raise result.exception
    return result.output


def explained(*options: str, response: str = RESPONSE, truth: str = "12-15.5 20-25", stdin: str = "") -> list[str]:
    """What it prints, white space folded."""
    printed = museg_reward("explain", "--ground-truth", truth, "--response", response, *options, stdin=stdin)
    return [" ".join(line.split()) for line in printed.splitlines()]


def line_of(part: str, lines: list[str]) -> str:
    (line,) = [line for line in lines if f" {part} " in f" {line} " and "why" not in line and "/" not in line[:5]][:1]
    return line


def test_it_prints_the_question_the_pairs_and_every_part() -> None:
    lines = explained("--question", "the red circle is visible")
    assert lines[0] == "the red circle is visible"
    assert "12.30 to 15.00 12.00 to 15.50 0.771 0.886" in lines
    assert "31.00 to 31.10 20.00 to 25.00 0.000 0.230" in lines
    assert line_of("global", lines).startswith("r_G global 0.314 IoU: 2.70 s shared")
    assert line_of("local", lines).startswith("r_L local 0.558 sum of NGIoU")
    assert line_of("matching", lines).startswith("r_M matching 0.436 x 1 0.436")
    assert line_of("timestamp", lines).startswith("r_T timestamp 0.000 x 1 0.000 not in the reasoning: 31.1")
    assert line_of("format", lines).startswith("r_F format 1.000 x 1 1.000")
    assert "total 1.436" in lines


def test_it_draws_truth_and_answer_over_one_axis() -> None:
    lines = explained(response="<think>5</think><answer>0-10</answer>", truth="0-5 15-20")
    (truth,) = [line for line in lines if line.startswith("truth")]
    (answer,) = [line for line in lines if line.startswith("answer █")]
    assert (truth.count("█"), truth.count("·")) == (32, 32)
    assert answer.split()[1] == "█" * 32 + "·" * 32


def test_it_shows_what_the_published_code_gives() -> None:
    assert "NGIoU 0.558" in " ".join(explained())
    empty = " ".join(explained(response="<think></think><answer></answer>"))
    assert "format 1 (stage 2: 1)" in empty and "The answer is invalid: the answer is empty." in empty


def test_missing_and_superfluous_segments_stand_alone() -> None:
    assert "- 20.00 to 25.00 0.000 0.000" in explained(response="<answer>12-15.5</answer>")
    assert "20.00 to 25.00 - 0.000 0.000" in explained(response="<answer>12-15 20-25</answer>", truth="12-15.5")


def test_the_truth_may_be_json_and_the_response_come_from_standard_input() -> None:
    assert explained(truth="[[12, 15.5], [20, 25]]", response="-", stdin=RESPONSE) == explained()


def test_a_response_on_standard_input_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DataError, match="standard input is not UTF-8 text"):
        museg_reward("explain", "--ground-truth", "1-2", "--response", "-", stdin=b"caf\xe9")


def test_a_runs_configuration_and_phase_give_the_weights(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "rewards: {local_matching: none, timestamp: fraction}\n"
        "train: {phases: [{name: a, steps: 1}, {name: b, steps: 1, weights: {matching: 2, tiou: 0.5}}]}\n"
    )
    lines = explained("--config", str(config), "--phase", "b")
    assert line_of("matching", lines).startswith("r_M matching 0.314 x 2 0.628 r_G (rewards.local_matching is none)")
    assert line_of("timestamp", lines).startswith("r_T timestamp 0.750 x 0 0.000")
    assert line_of("tiou", lines) == "tiou 0.314 x 0.5 0.157 IoU of the covered time"
    assert not [line for line in lines if line.startswith("r_L")]


def test_the_demos_second_phase_does_not_count_timestamps() -> None:
    lines = explained("--config", str(demo_config_path()), "--phase", "free")
    assert line_of("timestamp", lines).startswith("r_T timestamp 0.000 x 0")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (["--ground-truth", "5-1"], DataError, "'5-1' does not end after its start"),
        (["--ground-truth", "[[5, 1]]"], DataError, r"--ground-truth.*\[5, 1\]"),
        (["--ground-truth", ""], DataError, "the answer is empty"),
        (["--ground-truth", "1-2", "--phase", "free"], ConfigError, "--phase needs --config"),
        (["--ground-truth", "1-2", "-c", str(demo_config_path()), "--phase", "x"], ConfigError, "'timestamps', 'free'"),
    ],
)
def test_what_cannot_be_explained_is_refused(options: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        museg_reward("explain", "--response", RESPONSE, *options)


@pytest.fixture(scope="module")
def golden_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed = files("museg_ray").joinpath("assets/rewards_reference.jsonl.gz").read_bytes()
    file = tmp_path_factory.mktemp("golden") / "responses.jsonl"
    file.write_bytes(gzip.decompress(packed))
    return file


def scored(file: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    museg_reward("score", str(file), "--out", str(out), *options)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_scoring_with_the_reference_recipe_gives_the_golden_columns(golden_file: Path, tmp_path: Path) -> None:
    rows = scored(golden_file, tmp_path / "out.jsonl", "--recipe", "reference")
    cases = golden_cases()
    assert len(rows) == len(cases)
    for row, case in zip(rows, cases, strict=True):
        assert row == pytest.approx(case.reference, abs=1e-9, rel=0)


def test_scoring_with_the_paper_recipe_gives_its_parts_and_phase_1s_total(golden_file: Path, tmp_path: Path) -> None:
    recipe, weights = Recipe(RewardConfig()), RewardWeights(1.0, 1.0, 1.0)
    for row, case in zip(scored(golden_file, tmp_path / "out.jsonl"), golden_cases(), strict=True):
        rewards = recipe.score(case.response, GroundingQuery("", "", "", case.truth), weights)
        assert list(row) == ["global", "local", "matching", "timestamp", "format", "total"]
        assert row["total"] == rewards.total == row["matching"] + row["timestamp"] + row["format"]
        assert (row["global"], row["local"]) == (rewards.global_match, rewards.local_match)


def test_a_reward_that_is_no_number_is_null(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"response": "<answer>0.00-inf</answer>", "ground_truth": [[1, 2]]}\n')
    (row,) = scored(file, tmp_path / "out.jsonl", "--recipe", "reference")
    assert row["local_ngiou_unsorted"] is None and row["segment_matching_sum"] is None and row["global_f1"] == 0.0


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "expected a JSON object with response and ground_truth"),
        ('{"response": 1, "ground_truth": [[1, 2]]}', "field 'response' holds 1; expected a text"),
        ('{"response": ""}', "field 'ground_truth' is missing"),
        ('{"response": "", "ground_truth": []}', r"field 'ground_truth' holds \[\]"),
        ('{"response": "", "ground_truth": [[38, 13]]}', r"'ground_truth' holds \[38, 13\]"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(line: str, says: str, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"response": "", "ground_truth": [[1, 2]]}\n\n' + line + "\n")
    with pytest.raises(DataError, match=rf"in\.jsonl:3: .*{says}"):
        scored(file, out)
    assert not out.exists()


def test_the_reference_takes_a_reversed_truth_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"response": "<answer>20-21</answer>", "ground_truth": [[38, 13]]}\n')
    (row,) = scored(file, tmp_path / "out.jsonl", "--recipe", "reference")
    assert row["local_ngiou_unsorted"] == pytest.approx(-12.0)


def test_files_that_cannot_be_read_or_written_are_named(golden_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        scored(tmp_path / "nowhere.jsonl", tmp_path / "out.jsonl")
    with pytest.raises(ResourceError, match=r"Cannot write .*absent"):
        scored(golden_file, tmp_path / "absent" / "out.jsonl")
    with pytest.raises(ResourceError, match=r"Cannot write .*it is a folder"):
        scored(golden_file, tmp_path)
    assert not list(tmp_path.iterdir())
