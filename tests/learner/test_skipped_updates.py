"""Loss, gradient or log-probs that are not finite: left out, counted, and an error in the end."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from museg_ray.config.schema import Config
from museg_ray.errors import LearnerError
from museg_ray.learner.learner import Learner
from museg_ray.metrics import names
from museg_ray.types import Clip, Group
from tests.weights.weight_files import exported

RISING, FALLING = [40, 41, 42, 43], [50, 51, 52]

StartLearner = Callable[..., Learner]
MakeGroup = Callable[..., Group]


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return exported(learner)


@pytest.mark.parametrize(
    ("zero_stage", "advantages"),
    [
        (0, [3e38, -3e38]),
        (0, [np.nan, 1.0]),
        (1, [np.nan, 1.0]),
        (2, [3e38, -3e38]),
        (2, [np.inf, 0.0]),
        (3, [np.nan, 1.0]),
    ],
)
def test_an_update_that_is_not_finite_is_left_out_and_counted(
    config: Config,
    start_learner: StartLearner,
    make_group: MakeGroup,
    clip: Clip,
    zero_stage: int,
    advantages: list[float],
) -> None:
    """With finite losses of 3e38 the gradient overflows. The learner goes on as if the step had not been."""
    config.learner.zero_stage, config.learner.max_grad_norm = zero_stage, 1.0
    good, bad = make_group([RISING, FALLING], [1.0, -1.0]), make_group([[40], [50]], advantages)
    learner, untouched = start_learner(config), start_learner(config)
    for each in (learner, untouched):
        each.update([good], {clip.key: clip}, 1)
    before = weights_of(learner)
    metrics = learner.update([good, bad], {clip.key: clip}, 2)
    assert metrics[names.LEARNER_SKIPPED] == 1 and metrics[names.LEARNER_UPDATES] == 0
    assert names.LEARNER_LOSS not in metrics and names.LEARNER_GRAD_NORM not in metrics
    assert all(np.isfinite(list(metrics.values())))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(learner).items())
    for each in (learner, untouched):
        assert each.update([good], {clip.key: clip}, 3)[names.LEARNER_SKIPPED] == 0
    expected = weights_of(untouched)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(learner).items())


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_bfloat16_learner_with_an_offloaded_optimizer_goes_on_after_an_update_that_was_left_out(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, zero_stage: int
) -> None:
    config.model.dtype, config.learner.zero_stage, config.learner.offload_optimizer = "bfloat16", zero_stage, True
    good = make_group([RISING, FALLING], [1.0, -1.0], torch.bfloat16)
    bad = make_group([[40], [50]], [np.nan, 1.0], torch.bfloat16)
    learner, untouched = start_learner(config), start_learner(config)
    for step, scored in enumerate([good, bad, good], start=1):
        skipped = learner.update([scored], {clip.key: clip}, step)[names.LEARNER_SKIPPED]
        assert skipped == (1 if scored is bad else 0)
    for step in (1, 3):
        untouched.update([good], {clip.key: clip}, step)
    expected = weights_of(untouched)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(learner).items())


def test_a_gap_of_a_log_prob_that_is_not_finite_is_not_finite(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    learner = start_learner(config)
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    assert max(learner.gaps(scored, {clip.key: clip})) < 1e-5
    with torch.no_grad():
        learner._engine.module.model.model.language_model.norm.weight[0] = torch.nan
    assert not np.isfinite(learner.gaps(scored, {clip.key: clip})).any()


def test_three_updates_in_a_row_that_are_not_finite_are_an_error_and_two_are_not(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    good, bad = make_group([RISING, FALLING], [1.0, -1.0]), make_group([[40], [50]], [np.nan, 1.0])
    learner = start_learner(config)
    for step, scored in enumerate([bad, bad, good, bad, bad], start=1):
        learner.update([scored], {clip.key: clip}, step)
    with pytest.raises(LearnerError, match=r"last 3 updates, up to step 6, was not finite"):
        learner.update([bad], {clip.key: clip}, 6)


def test_a_rollout_log_prob_that_is_not_finite_is_an_error_that_names_the_query(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    scored.responses[0].logprobs[0] = np.nan
    with pytest.raises(LearnerError, match=r"query test/0 .*not finite"):
        start_learner(config).update([scored], {clip.key: clip}, 1)
