import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from museg_ray.config.load import load_config
from museg_ray.data.curriculum import Curriculum, load_curriculum, pass_order
from museg_ray.data.sampler import QuerySampler
from museg_ray.errors import ConfigError, DataError
from museg_ray.types import GroundingQuery, Segment

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = "examples.curriculum.difficulty"


def query(number: int, *segments: Segment) -> GroundingQuery:
    return GroundingQuery(f"q/{number}", f"/v{number}.mp4", "event", segments or ((0.0, 1.0),))


def returning(value: Any) -> Curriculum:
    return Curriculum("my.difficulty", lambda query, epoch: value)


@given(levels=st.lists(st.integers(0, 3), min_size=1, max_size=20), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_a_pass_rises_in_difficulty_and_what_is_equal_stays_in_the_random_order(
    levels: list[int], seed: int, epoch: int
) -> None:
    queries = [query(number) for number in range(len(levels))]
    by_level = Curriculum("by.level", lambda query, epoch: levels[int(query.query_id[2:])])
    shuffled = pass_order(queries, (seed,), epoch, None)
    order = pass_order(queries, (seed,), epoch, by_level)
    assert [levels[place] for place in order] == sorted(levels)
    for level in levels:
        assert [place for place in order if levels[place] == level] == [p for p in shuffled if levels[p] == level]


def test_a_constant_difficulty_is_plain_random_order() -> None:
    plain, constant = (QuerySampler([query(number) for number in range(9)], 3, None, c) for c in (None, returning(2)))
    for sampler in (plain, constant):
        sampler.start_phase(0.0)
    assert plain.draw(30) == constant.draw(30)


def test_the_function_is_told_of_the_pass_and_asked_once_a_query() -> None:
    asked = []

    def difficulty(query: GroundingQuery, epoch: int) -> float:
        asked.append((query.query_id, epoch))
        return 0.0

    sampler = QuerySampler([query(0), query(1)], 0, curriculum=Curriculum("my.difficulty", difficulty))
    sampler.start_phase(0.0)
    sampler.draw(6)
    assert sorted(asked) == [(f"q/{number}", epoch) for number in (0, 1) for epoch in (0, 1, 2)]


@pytest.mark.parametrize("value", [True, 3, np.float32(0.5), np.int64(2), Fraction(1, 3), -1e300])
def test_any_finite_number_is_a_difficulty(value: Any) -> None:
    assert returning(value).measure(query(0), 0) == float(value)


@pytest.mark.parametrize("value", [None, "hard", math.nan, math.inf, 1j, np.zeros(2), Decimal("1")])
def test_what_is_no_finite_number_is_refused_with_the_querys_name(value: Any) -> None:
    with pytest.raises(DataError, match=r"my\.difficulty returned .* for the query q/7 \(/v7\.mp4\) in pass 2"):
        returning(value).measure(query(7), 2)


def test_an_error_of_the_function_is_shown_with_the_querys_name() -> None:
    failing = Curriculum("my.difficulty", lambda query, epoch: 1 / epoch)
    with pytest.raises(DataError, match="raised ZeroDivisionError: division by zero for the query q/7"):
        failing.measure(query(7), 0)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(DataError, match="raised OverflowError"):
        returning(10**400).measure(query(0), 0)


def test_a_function_that_fails_is_found_before_the_first_draw() -> None:
    with pytest.raises(DataError, match="returned None"):
        QuerySampler([query(0)], 0, curriculum=returning(None))


def test_no_path_is_no_curriculum() -> None:
    assert load_curriculum("") is None


@pytest.mark.parametrize("path", ["no_such_module.difficulty", "examples.curriculum.absent", "examples"])
def test_a_path_that_leads_to_no_function_is_refused_with_its_key(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.curriculum is '{path}'"):
        load_curriculum(path)


def test_the_example_draws_few_and_long_segments_first_and_at_random_later() -> None:
    queries = [
        query(0, (0.0, 5.0), (6.0, 7.0)),
        query(1, (0.0, 1.0)),
        query(2, (0.0, 1.0), (2.0, 3.0), (4.0, 5.0)),
        query(3, (0.0, 9.0)),
        query(4, (0.0, 5.0), (6.0, 9.0)),
    ]
    example = load_curriculum(EXAMPLE)
    assert pass_order(queries, (0,), 0, example) == [3, 1, 4, 0, 2]
    assert pass_order(queries, (0,), 1, example) == pass_order(queries, (0,), 1, None)


def test_the_examples_command_is_a_configuration_that_loads() -> None:
    text = (REPOSITORY / "examples" / "curriculum.py").read_text(encoding="utf-8")
    (command,) = [line.split() for line in text.splitlines() if line.startswith("    museg")]
    assert command[:3] == ["museg", "train", "-c"]
    assert load_config(REPOSITORY / command[3], command[4:]).data.curriculum == EXAMPLE


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.curriculum=difficulty", "data.curriculum is 'difficulty'; it must be an import path"),
        ("data.curriculum=my/own.py", "must be an import path"),
        ("data.source_weights={a: -1}", r"data\.source_weights\['a'\] is -1"),
        ("data.source_weights={a: .nan}", r"data\.source_weights\['a'\] is nan"),
        ("data.source_weights={a: 0, b: 0}", "are all 0"),
        ("data.source_weights={a: often}", "data.source_weights"),
    ],
)
def test_a_wrong_value_of_the_configuration_is_refused_with_its_key(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(REPOSITORY / "configs" / "demo.yaml", [override])


def test_weights_are_read_from_the_configuration() -> None:
    config = load_config(REPOSITORY / "configs" / "demo.yaml", ["data.source_weights={charades: 1, hacs: 2.5}"])
    assert config.data.source_weights == {"charades": 1.0, "hacs": 2.5}
