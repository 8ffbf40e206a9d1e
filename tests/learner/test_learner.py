"""Updates by DeepSpeed: direction, size, parity with the rollout, and refusal of what is not finite."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from safetensors.torch import load_file

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.learner import deepspeed_engine
from museg_ray.learner.batch import MicroBatch
from museg_ray.learner.learner import Learner
from museg_ray.metrics import names
from museg_ray.model.policy import PolicyModel
from museg_ray.model.qwen_vl import load_policy, load_vision_spec, resolve_model_path
from museg_ray.types import Clip, Group
from museg_ray.weights.layout import Part, part_of
from tests.weights.weight_files import exported

RISING, FALLING = [40, 41, 42, 43], [50, 51, 52]
EMPTY: list[int] = []

StartLearner = Callable[..., Learner]
FreshPolicy = Callable[[torch.dtype], PolicyModel]
MakeGroup = Callable[..., Group]
PolicyInputs = Callable[..., tuple]


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return exported(learner)


def plain_loss(policy: PolicyModel, inputs: tuple, scored: Group) -> torch.Tensor:
    """The loss of one group without a reference, in the on-policy form: written out from the formula."""
    logprobs, _ = policy(*inputs)  # [N]
    total, start = torch.zeros(()), 0
    for response, advantage in zip(scored.responses, scored.advantages, strict=True):
        mine = logprobs[start : start + len(response.token_ids)]
        start += len(mine)
        if len(mine):
            total = total - (torch.exp(mine - mine.detach()) * float(advantage)).mean()
    return total / len(scored.advantages)


def test_an_update_raises_good_responses_and_lowers_bad_ones(
    config: Config,
    start_learner: StartLearner,
    make_group: MakeGroup,
    fresh_policy: FreshPolicy,
    policy_inputs: PolicyInputs,
    clip: Clip,
) -> None:
    learner = start_learner(config)
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    metrics = learner.update([scored], {clip.key: clip}, 1)
    policy = fresh_policy(torch.float32)
    policy.model.load_state_dict(weights_of(learner), strict=False)  # tied weights come once
    with torch.no_grad():
        after = policy(*policy_inputs([RISING, FALLING]))[0].numpy()
    rising, falling = scored.responses
    assert after[: len(RISING)].sum() > rising.logprobs.sum()
    assert after[len(RISING) :].sum() < falling.logprobs.sum()
    assert metrics[names.LEARNER_GRAD_NORM] > 0
    assert metrics[names.LEARNER_LEARNING_RATE] == config.learner.learning_rate


@pytest.mark.parametrize(("zero_stage", "max_grad_norm"), [(0, 0.5), (1, 0.5), (2, 0.5), (2, 0.0), (3, 0.5)])
def test_a_step_equals_a_plain_torch_step_on_the_mean_loss_of_the_groups(
    config: Config,
    start_learner: StartLearner,
    make_group: MakeGroup,
    fresh_policy: FreshPolicy,
    policy_inputs: PolicyInputs,
    clip: Clip,
    zero_stage: int,
    max_grad_norm: float,
) -> None:
    config.learner.zero_stage, config.learner.max_grad_norm = zero_stage, max_grad_norm
    config.learner.learning_rate = 1e-4  # Adam turns rounding in a gradient near 0 into a part of the rate
    batches = [  # the number of groups differs between steps
        [make_group([RISING, FALLING, EMPTY], [1.0, -0.5, -0.5])],
        [make_group([FALLING, RISING], [0.7, -0.7]), make_group([[60], [61, 62]], [-1.0, 1.0])],
    ]
    learner = start_learner(config)
    policy = fresh_policy(torch.float32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learner.learning_rate, weight_decay=0.0)
    for groups in batches:
        metrics = learner.update(groups, {clip.key: clip}, 1)
        inputs = [policy_inputs([response.token_ids for response in scored.responses]) for scored in groups]
        losses = [plain_loss(policy, *pair) for pair in zip(inputs, groups, strict=True)]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm or torch.inf)
        optimizer.step()
        assert metrics[names.LEARNER_LOSS] == pytest.approx(loss.item(), abs=1e-5)
        assert metrics[names.LEARNER_GRAD_NORM] == pytest.approx(norm.item(), rel=1e-4)
    weights = weights_of(learner)
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=0, atol=1e-5, msg=name)


def test_the_gap_is_zero_for_the_same_weights_and_seen_for_others(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    learner = start_learner(config)
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    first = learner.update([scored], {clip.key: clip}, 1)
    assert first[names.PARITY_GAP_MAX] < 1e-5
    second = learner.update([scored], {clip.key: clip}, 1)  # its log-probs are those of the weights before
    assert second[names.PARITY_GAP_MAX] > 1e-3
    assert 0 < second[names.PARITY_GAP_MEAN] <= second[names.PARITY_GAP_MAX]


def test_special_tokens_in_responses_do_not_crash_and_are_left_out_of_loss_and_gap(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, tiny_model_dir: Path, clip: Clip
) -> None:
    video = load_vision_spec(tiny_model_dir).video_token_id
    scored = make_group([[video, 40, video, 41, video], [video] * 3], [1.0, -1.0])
    scored.responses[1].logprobs[:] = 0.0  # whatever is claimed of a forbidden token is no gap
    metrics = start_learner(config).update([scored], {clip.key: clip}, 1)
    assert all(np.isfinite(list(metrics.values())))
    assert metrics[names.PARITY_GAP_MAX] < 1e-5
    # Only the two plain tokens carry loss: -1 on average over the first response, nothing in the second.
    assert metrics[names.LEARNER_LOSS] == pytest.approx(-0.5, abs=1e-5)


def test_a_group_of_empty_responses_changes_nothing(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    learner = start_learner(config)
    before = weights_of(learner)
    metrics = learner.update([make_group([EMPTY, EMPTY], [0.0, 0.0])], {clip.key: clip}, 1)
    assert metrics[names.LEARNER_GRAD_NORM] == 0.0
    assert names.PARITY_GAP_MEAN not in metrics  # there is no token to compare
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(learner).items())


def test_the_kl_term_measures_the_distance_to_the_reference_of_the_last_phase_that_took_a_fresh_one(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    config.algo.beta = 0.04
    learner = start_learner(config)
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    assert learner.update([scored], {clip.key: clip}, 1)[names.LEARNER_KL] == pytest.approx(0.0, abs=1e-6)
    assert learner.update([scored], {clip.key: clip}, 1)[names.LEARNER_KL] > 1e-5
    learner.start_phase(PhaseConfig(fresh_optimizer=True, fresh_schedule=True))
    assert learner.update([scored], {clip.key: clip}, 1)[names.LEARNER_KL] > 1e-5
    learner.start_phase(PhaseConfig(fresh_reference=True))
    assert learner.update([scored], {clip.key: clip}, 1)[names.LEARNER_KL] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_after_a_fresh_optimizer_an_update_equals_that_of_a_learner_newly_started_from_the_same_weights(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, tmp_path: Path, zero_stage: int
) -> None:
    config.learner.zero_stage = zero_stage
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    learner = start_learner(config)
    learner.start_phase(PhaseConfig(fresh_optimizer=True))  # before the first update there is nothing to forget
    for _ in range(2):
        learner.update([scored], {clip.key: clip}, 1)
    learner.export_model(tmp_path)
    learner.start_phase(PhaseConfig(fresh_optimizer=True))
    newly_started = start_learner(config, tmp_path)
    for _ in range(2):  # the second one sees whether the moments gathered since are those of a new learner, too
        for each in (learner, newly_started):
            each.update([scored], {clip.key: clip}, 1)
        expected = weights_of(newly_started)
        for name, tensor in weights_of(learner).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_phase_that_wants_nothing_fresh_keeps_the_moments(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, zero_stage: int
) -> None:
    config.learner.zero_stage = zero_stage
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    undisturbed, next_phase, fresh = (start_learner(config) for _ in range(3))
    for learner in (undisturbed, next_phase, fresh):
        learner.update([scored], {clip.key: clip}, 1)
    next_phase.start_phase(PhaseConfig(fresh_schedule=True))
    fresh.start_phase(PhaseConfig(fresh_optimizer=True))
    for learner in (undisturbed, next_phase, fresh):
        learner.update([scored], {clip.key: clip}, 1)
    expected, kept, forgot = (weights_of(learner) for learner in (undisturbed, next_phase, fresh))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in kept.items())
    assert max((tensor - expected[name]).abs().max() for name, tensor in forgot.items()) > 1e-4


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_a_bfloat16_learner_forgets_its_moments_too(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, zero_stage: int
) -> None:
    config.model.dtype, config.learner.zero_stage = "bfloat16", zero_stage  # stage 1 has a class of its own for it
    learner = start_learner(config)
    learner.update([make_group([RISING, FALLING], [1.0, -1.0], torch.bfloat16)], {clip.key: clip}, 1)
    no_gradient = make_group([RISING, FALLING], [0.0, 0.0], torch.bfloat16)  # the moments alone move the weights

    def moves() -> bool:
        before = weights_of(learner)
        learner.update([no_gradient], {clip.key: clip}, 1)
        return any(not torch.equal(tensor, before[name]) for name, tensor in weights_of(learner).items())

    assert moves()
    learner.start_phase(PhaseConfig(fresh_optimizer=True))
    assert not moves()


def test_the_learning_rate_starts_anew_with_a_phase_that_wants_a_fresh_schedule(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    config.learner.schedule = "linear"
    config.train.phases = [PhaseConfig(name="first", steps=2), PhaseConfig(name="next", steps=1, fresh_schedule=True)]
    learner = start_learner(config)
    scored = make_group([[40], [50]], [1.0, -1.0])
    rates = [learner.update([scored], {clip.key: clip}, step)[names.LEARNER_LEARNING_RATE] for step in (1, 2, 3)]
    assert rates == pytest.approx([1e-3, 0.5e-3, 1e-3])


@pytest.mark.parametrize("train_merger", [True, False])
def test_a_frozen_vision_tower_is_not_trained_and_not_sent(
    config: Config,
    start_learner: StartLearner,
    make_group: MakeGroup,
    tiny_model_dir: Path,
    clip: Clip,
    tmp_path: Path,
    train_merger: bool,
) -> None:
    config.learner.train_vision, config.learner.train_merger = False, train_merger
    learner = start_learner(config)
    before = weights_of(learner)
    parts = {part_of(name) for name in before}
    assert parts == {Part.LANGUAGE, Part.MERGER} if train_merger else {Part.LANGUAGE}
    learner.update([make_group([RISING, FALLING], [1.0, -1.0])], {clip.key: clip}, 1)
    changed = {part_of(name) for name, tensor in weights_of(learner).items() if not torch.equal(tensor, before[name])}
    assert changed == parts
    learner.export_model(tmp_path / "model")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    frozen = load_file(tiny_model_dir / "model.safetensors")
    names_of_frozen = [name for name in frozen if part_of(name) not in parts]
    assert names_of_frozen and all(torch.equal(exported[name], frozen[name]) for name in names_of_frozen)


@pytest.mark.parametrize("train_merger", [True, False])
def test_a_frozen_tower_that_runs_once_gives_the_update_of_one_that_runs_in_every_pass(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, train_merger: bool
) -> None:
    config.learner.train_vision, config.learner.train_merger = False, train_merger
    config.algo.beta, config.algo.num_epochs = 0.04, 2
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    learners = [start_learner(config), start_learner(config)]
    towers = [0, 0]

    def count_tower(index: int) -> None:
        towers[index] += 1

    for index, learner in enumerate(learners):
        visual = learner._engine.module.model.model.visual
        visual.register_forward_hook(lambda *_, index=index: count_tower(index))
    prepare = learners[1]._prepare

    def forget_states(batch: MicroBatch, with_old: bool) -> None:
        prepare(batch, with_old)
        batch.states = None

    learners[1]._prepare = forget_states  # type: ignore[method-assign]
    for learner in learners:
        learner.update([scored], {clip.key: clip}, 1)
    assert towers == [1, 3]  # once for all passes; once too and in each of the two epochs
    weights = [weights_of(learner) for learner in learners]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("train_vision", [True, False])
def test_gradient_checkpointing_gives_the_same_update(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, train_vision: bool
) -> None:
    config.learner.train_vision = train_vision
    scored = make_group([RISING, FALLING], [1.0, -1.0])
    updated = []
    for checkpointing in (False, True):
        config.learner.gradient_checkpointing = checkpointing
        learner = start_learner(config)
        learner.update([scored], {clip.key: clip}, 1)
        updated.append(weights_of(learner))
    for name, tensor in updated[0].items():
        torch.testing.assert_close(updated[1][name], tensor, rtol=0, atol=1e-5, msg=name)


def test_a_bfloat16_learner_adds_up_small_updates_in_float32(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    config.model.dtype, config.learner.learning_rate = "bfloat16", 1e-4
    learner = start_learner(config)
    scored = make_group([RISING, FALLING], [1.0, -1.0], torch.bfloat16)
    before = weights_of(learner)
    gaps = [learner.update([scored], {clip.key: clip}, 1)[names.PARITY_GAP_MEAN] for _ in range(3)]
    assert gaps[0] < 0.05
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    weights = weights_of(learner)
    assert weights[name].dtype == torch.bfloat16
    # One step moves a weight by 1e-4. Above 1/16 that is less than half of bfloat16's spacing: it would be lost.
    is_large = before[name].abs() > 1 / 16
    assert (weights[name] != before[name])[is_large].float().mean() > 0.1


def test_zero_3_knows_what_comes_next_though_packs_differ_in_length(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are gathered ahead, and those of the head kept between its calls, only while its trace holds."""
    config.learner.zero_stage, config.learner.chunk_tokens = 3, 2
    long, short = make_group([RISING, FALLING], [1.0, -1.0]), make_group([[40], [50]], [1.0, -1.0])
    config.learner.pack_tokens = len(long.prompt_ids) + 8  # a pack each
    invalidated = []
    invalidate = PartitionedParameterCoordinator._invalidate_trace
    monkeypatch.setattr(
        PartitionedParameterCoordinator, "_invalidate_trace", lambda it: (invalidated.append(it), invalidate(it))
    )
    learner = start_learner(config)
    for step, groups in enumerate([[short], [long, short], [short, long], [short]], start=1):
        learner.update(groups, {clip.key: clip}, step)
        if step <= 2:  # it had to learn that there are longer ones
            invalidated.clear()
    assert invalidated == []
    assert learner._engine.optimizer.parameter_offload.get_param_coordinator().is_complete_trace()


@pytest.mark.parametrize("reduce_in_float32", [False, True])
def test_gradients_cross_ranks_in_float32_where_that_is_asked_for(
    config: Config, start_learner: StartLearner, reduce_in_float32: bool
) -> None:
    config.model.dtype, config.learner.reduce_in_float32 = "bfloat16", reduce_in_float32
    crossing = start_learner(config)._engine.optimizer.communication_data_type
    assert crossing == (torch.float32 if reduce_in_float32 else torch.bfloat16)


@pytest.mark.parametrize(("device", "overlaps"), [("cpu", False), ("cuda", True)])
def test_gathering_and_reducing_overlap_with_the_arithmetic_on_a_gpu_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch, device: str, overlaps: bool
) -> None:
    monkeypatch.setattr(deepspeed_engine, "learner_device", lambda: torch.device(device))
    assert deepspeed_engine.deepspeed_config(config, 10)["zero_optimization"]["overlap_comm"] is overlaps


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_an_exported_model_loads_with_the_weights_of_the_learner(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip, tmp_path: Path, zero_stage: int
) -> None:
    config.learner.zero_stage = zero_stage
    learner = start_learner(config)
    learner.update([make_group([RISING, FALLING], [1.0, -1.0])], {clip.key: clip}, 1)
    learner.export_model(tmp_path / "model")
    weights = weights_of(learner)
    model = load_policy(resolve_model_path(str(tmp_path / "model")), torch.float32)
    assert weights.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_gaps_are_those_of_each_response_also_over_several_packs_and_beside_an_empty_one(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clip: Clip
) -> None:
    group = make_group([[40, 41, 42], [], [50, 51], [60] * 4], [0.0] * 4)
    off = replace(group.responses[2], logprobs=group.responses[2].logprobs + np.array([0.5, -0.25], np.float32))
    group = replace(group, responses=(*group.responses[:2], off, group.responses[3]))
    config.learner.pack_tokens = len(group.prompt_ids) + 4
    learner = start_learner(config)
    assert len(learner._batcher.micro_batches([group], {clip.key: clip}, 0)) > 1
    assert learner.gaps(group, {clip.key: clip}) == pytest.approx([0.0, 0.0, 0.375, 0.0], abs=1e-5)
