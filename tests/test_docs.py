"""What docs/rewards.md shows is what the code does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from museg_ray.cli.main import app
from museg_ray.config.load import load_config
from museg_ray.config.schema import FURTHER_REWARDS, AlarmConfig, RewardConfig, RewardWeights
from museg_ray.metrics import names
from museg_ray.metrics.alarms import alarm_name
from museg_ray.rewards.answer import parse_items, parse_response
from museg_ray.rewards.further import load_reward
from museg_ray.rewards.recipe import Recipe
from museg_ray.rewards.reference import reference_rewards
from museg_ray.types import GroundingQuery

REPOSITORY = Path(__file__).resolve().parents[1]
DOC = (REPOSITORY / "docs" / "rewards.md").read_text(encoding="utf-8")
ROWS = [line for line in DOC.splitlines() if re.match(r"\| \d", line)]
COMPARED = [[cell.strip().strip("*") for cell in row.strip("|").split("|")] for row in ROWS]


def test_twenty_responses_are_compared() -> None:
    assert [row[0] for row in COMPARED] == [str(number) for number in range(1, 21)]


@pytest.mark.parametrize("row", COMPARED, ids=lambda row: row[0])
def test_the_numbers_of_a_compared_response_are_those_of_the_recipes(row: list[str]) -> None:
    text, (truth, problem) = row[1].strip("`"), parse_items(row[2])
    assert not problem
    query = GroundingQuery("doc/0", "", "", tuple(truth))
    rewards = Recipe(RewardConfig()).score(text, query, RewardWeights(1.0, 1.0, 1.0))
    reference = reference_rewards(text, truth)
    paper = [f"{rewards.matching:.3f}", f"{rewards.timestamp:g}", f"{rewards.format:g}", f"{rewards.total:.3f}"]
    total = reference.format_with_timestamp + reference.segment_matching_sum
    published = [f"{reference.segment_matching_sum:.3f}", f"{reference.format_with_timestamp:g}", f"{total:.3f}"]
    assert row[3:10] == [*paper, *(cell.replace("nan", "NaN") for cell in published)]


def test_the_explained_response_is_explained_like_that() -> None:
    command, printed = re.findall(r"```\n(.*?)\n```", DOC.split("## Why a response")[1], re.DOTALL)[:2]
    result = CliRunner().invoke(app, shlex.split(command.replace("\\\n", ""))[1:])
    assert [line.rstrip() for line in result.output.strip().splitlines()] == printed.splitlines()


def test_every_further_reward_and_every_alarm_is_in_a_table() -> None:
    for name in (*FURTHER_REWARDS, *map(alarm_name, names.ALARMS)):
        assert f"\n| `{name}` |" in DOC


def test_every_key_that_is_named_exists() -> None:
    for key in re.findall(r"`rewards\.([a-z_]+)", DOC):
        assert hasattr(RewardConfig(), key), key
    for key in re.findall(r"`alarms\.(?!jsonl)([a-z_]+)", DOC):
        assert hasattr(AlarmConfig(), key), key


def test_the_example_reward_is_the_share_of_answered_time_that_is_true() -> None:
    reward = load_reward("examples.precision_reward.reward")
    query = GroundingQuery("doc/0", "", "", ((10.0, 20.0), (30.0, 40.0)))
    assert reward(parse_response("<answer>10-20</answer>"), query) == 1.0
    assert reward(parse_response("<answer>15-25 0-10</answer>"), query) == pytest.approx(1 / 4)
    assert reward(parse_response("<answer></answer>"), query) == 0.0


def test_the_examples_command_is_a_configuration_that_loads() -> None:
    lines = (REPOSITORY / "examples" / "precision_reward.py").read_text(encoding="utf-8").split('"""')[1].splitlines()
    command = shlex.split(" ".join(line.strip().rstrip("\\") for line in lines if line.startswith("    ")))
    assert command[:3] == ["museg", "train", "-c"]
    config = load_config(REPOSITORY / command[3], command[4:])
    assert (config.total_steps, config.train.phases[0].weights.custom) == (20, 1.0)
