import pytest

from museg_ray.data.prompts import render_prompt
from museg_ray.errors import ConfigError


def test_the_question_takes_its_place_whatever_braces_are_around() -> None:
    template = 'When does "{question}" happen? Answer {like} {0} this.'
    assert render_prompt(template, "a {b} %s") == 'When does "a {b} %s" happen? Answer {like} {0} this.'


def test_a_template_without_a_place_for_the_question_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\{question\}"):
        render_prompt("When?", "the red circle is visible")
