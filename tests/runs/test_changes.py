"""Which configurations a run can be resumed with."""

from copy import deepcopy
from dataclasses import replace

import pytest

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import ConfigError
from museg_ray.runs.changes import check_changes

STEP = 7
"""In the second of three phases."""


@pytest.fixture
def was() -> Config:
    config = Config()
    config.train.phases = [PhaseConfig("one", 5), PhaseConfig("two", 5), PhaseConfig("three", 5)]
    config.evaluation.prompt = "{question}"
    return config


@pytest.fixture
def now(was: Config) -> Config:
    return deepcopy(was)


def _set(config: Config, key: str, value: object) -> None:
    *sections, name = key.split(".")
    node: object = config
    for section in sections:
        node = getattr(node, section)
    assert getattr(node, name) != value
    setattr(node, name, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.path", "other"),
        ("model.dtype", "float32"),
        ("data.train", "other.jsonl"),
        ("data.multi_segment_share", 0.25),
        ("data.synthetic.seed", 4),
        ("data.source_weights", {"a": 1.0}),
        ("run.seed", 1),
        ("train.prompts_per_step", 3),
        ("video.fps", 1.0),
        ("video.size_multiple", 32),
        ("video.total_pixels", 1000),
        ("learner.lora.rank", 4),
        ("learner.train_vision", False),
        ("evaluation.num_queries", 3),
    ],
)
def test_what_the_steps_so_far_depend_on_is_refused(key: str, value: object, was: Config, now: Config) -> None:
    _set(now, key, value)
    name = key if not isinstance(value, dict) else key + ".a"
    with pytest.raises(ConfigError, match=rf"{name} is .*but the run to be resumed had .* up to step {STEP}"):
        check_changes(was, now, STEP)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learner.num_ranks", 4),
        ("learner.zero_stage", 3),
        ("learner.learning_rate", 1.0),
        ("learner.step_timeout_s", 1.0),
        ("rollout.num_actors", 7),
        ("rollout.num_threads", 7),
        ("checkpoint.every_steps", 7),
        ("video.store_dir", "elsewhere"),
        ("algo.beta", 0.5),
    ],
)
def test_what_may_differ_is_told(key: str, value: object, was: Config, now: Config) -> None:
    _set(now, key, value)
    (line,) = check_changes(was, now, STEP)
    assert line.startswith(f"{key} was ") and line.endswith(f"and is {value!r} from there on")


def test_where_the_run_lies_and_that_it_is_resumed_is_no_change(was: Config, now: Config) -> None:
    now.run.dir, now.run.name, now.run.resume = "/elsewhere", "renamed", True
    assert check_changes(was, now, STEP) == []


@pytest.mark.parametrize(
    ("phases", "refused"),
    [
        ("longer two", ""),
        ("shorter three", ""),
        ("no three", ""),
        ("other three", ""),
        ("two to its last made step", ""),
        ("other one", r"train.phases\[0\].prompt"),
        ("other two", r"train.phases\[1\].prompt"),
        ("shorter one", "train.phases"),
        ("longer one", r"train.phases\[1\].name"),
        ("too few", "have 5 steps; the run to be resumed has made 7"),
    ],
)
def test_phases_may_differ_after_the_checkpoint_alone(phases: str, refused: str, was: Config, now: Config) -> None:
    one, two, three = now.train.phases
    now.train.phases = {
        "longer two": [one, replace(two, steps=9), three],
        "shorter three": [one, two, replace(three, steps=1)],
        "no three": [one, two],
        "other three": [one, two, replace(three, prompt="Find {question}", train="other.jsonl")],
        "two to its last made step": [one, replace(two, steps=2), three],
        "other one": [replace(one, prompt="Find {question}"), two, three],
        "other two": [one, replace(two, prompt="Find {question}"), three],
        "shorter one": [replace(one, steps=4), two, three],
        "longer one": [replace(one, steps=6), two, three],
        "too few": [one],
    }[phases]
    if refused:
        with pytest.raises(ConfigError, match=refused):
            check_changes(was, now, STEP)
    else:
        assert all(line.startswith("train.phases[") for line in check_changes(was, now, STEP))


def test_a_phase_that_was_split_would_start_anew_in_the_middle(was: Config, now: Config) -> None:
    one, two, three = now.train.phases
    now.train.phases = [one, replace(two, steps=1), replace(two, name="two again", steps=4), three]
    with pytest.raises(ConfigError, match=r"train.phases\[1\].name"):
        check_changes(was, now, STEP)


def test_an_evaluation_that_would_ask_otherwise_after_than_before_is_refused(was: Config, now: Config) -> None:
    was.evaluation.prompt = now.evaluation.prompt = ""
    now.train.phases[-1].prompt = "Find {question}"
    with pytest.raises(ConfigError, match=r"evaluation\.prompt"):
        check_changes(was, now, STEP)
