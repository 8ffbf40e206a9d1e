import re
from pathlib import Path

import pytest

from museg_ray.algo.aggregation import LOSS_MEANS
from museg_ray.algo.correction import CORRECTIONS, LEVELS
from museg_ray.algo.kl import KL_ESTIMATORS
from museg_ray.algo.surrogate import SURROGATES
from museg_ray.config.load import load_config
from museg_ray.errors import ConfigError

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
CHOICES = {"kl_estimator": KL_ESTIMATORS, "loss_mean": LOSS_MEANS, "correction": CORRECTIONS, "surrogate": SURROGATES}


@pytest.mark.parametrize("key", CHOICES)
def test_a_choice_may_be_exactly_what_is_implemented(key: str) -> None:
    for choice in CHOICES[key]:
        assert getattr(load_config(DEMO, [f"algo.{key}={choice}"]).algo, key) == choice
    allowed = ", ".join(map(repr, CHOICES[key]))
    says = f"algo.{key} is 'mean'; it may be one of {allowed}."
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(DEMO, [f"algo.{key}=mean"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algo.beta=-0.1", "algo.beta is -0.1; it must be a number of at least 0."),
        ("algo.beta=.nan", "algo.beta is nan"),
        ("algo.beta=.inf", "algo.beta is inf"),
        ("algo.clip_low=-0.1", "algo.clip_low is -0.1; it must lie between 0 and 1."),
        ("algo.clip_low=1.1", "algo.clip_low is 1.1"),
        ("algo.clip_high=-0.1", "algo.clip_high is -0.1; it must be a number of at least 0."),
        ("algo.dual_clip=1", "algo.dual_clip is 1; it must be above 1 (a bound on the ratio), or 0 for none."),
        ("algo.dual_clip=-3", "algo.dual_clip is -3"),
        ("algo.dual_clip=.inf", "algo.dual_clip is inf"),
        ("algo.entropy_bonus=-0.01", "algo.entropy_bonus is -0.01"),
        ("algo.correction_limit=0.9", "algo.correction_limit is 0.9; it must be a number of at least 1."),
        ("algo.correction_limit=.inf", "algo.correction_limit is inf"),
        ("algo.num_epochs=0", "algo.num_epochs is 0; it must be at least 1."),
        ("algo.num_minibatches=0", "algo.num_minibatches is 0; it must be at least 1."),
        ("algo.num_minibatches=1000", "algo.num_minibatches is 1000, more than train.prompts_per_step ("),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(DEMO, [override])


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_is_implemented_may_be_chosen(level: str) -> None:
    config = load_config(DEMO, ["algo.correction=truncate", f"algo.correction_level={level}"])
    assert config.algo.correction_level == level
    with pytest.raises(ConfigError, match="correction_level is 'word'; it may be one of 'token', 'sequence'"):
        load_config(DEMO, ["algo.correction_level=word"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["advantage=rloo"], "set algo.scale_advantages=false"),
        (["advantage=mean"], "algo.advantage is 'mean'; it may be one of 'grpo', 'rloo'."),
        (["surrogate=cispo", "dual_clip=3"], "algo.surrogate is 'cispo'"),
        (["surrogate=gspo", "loss_mean=token"], "algo.loss_mean is 'token'. Set it to 'sequence'."),
        (["surrogate=gspo", "loss_mean=constant"], "algo.loss_mean is 'constant'. Set it to 'sequence'."),
        (["surrogate=gspo", "correction=mask"], "set algo.correction_level to 'sequence' or 'geometric'"),
        (["correction_level=sequence"], "algo.correction_level is 'sequence', but algo.correction is 'none'"),
    ],
)
def test_a_combination_without_meaning_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config(DEMO, [f"algo.{override}" for override in overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        ["advantage=rloo", "scale_advantages=false", "loss_mean=constant"],
        ["surrogate=gspo", "clip_low=3e-4", "clip_high=4e-4", "correction=mask", "correction_level=geometric"],
        ["surrogate=gspo", "dual_clip=3"],
        ["surrogate=cispo", "clip_low=1", "loss_mean=token", "correction=truncate"],
    ],
)
def test_the_papers_combinations_are_taken(overrides: list[str]) -> None:
    load_config(DEMO, [f"algo.{override}" for override in overrides])


@pytest.mark.parametrize(
    "override",
    ["beta=0", "clip_low=0", "clip_low=1", "clip_high=0", "clip_high=5", "dual_clip=1.01", "correction_limit=1"],
)
def test_a_value_at_the_end_of_its_range_is_taken(override: str) -> None:
    load_config(DEMO, [f"algo.{override}"])


def test_a_step_may_have_an_update_for_each_of_its_groups() -> None:
    config = load_config(DEMO, ["train.prompts_per_step=3", "algo.num_minibatches=3", "algo.num_epochs=2"])
    assert (config.algo.num_minibatches, config.algo.num_epochs) == (3, 2)
