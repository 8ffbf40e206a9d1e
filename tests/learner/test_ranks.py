"""Two ranks on one machine: the same updates as one rank, and checkpoints that fit any number of them."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import numpy as np
import pytest
import torch
from safetensors.torch import load

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.learner.learner import Learner
from museg_ray.learner.rank import Rank
from museg_ray.learner.weights import policy_weights
from museg_ray.metrics import names
from museg_ray.types import Clip, Group
from museg_ray.weights.channel import WritePlace
from museg_ray.weights.layout import Layout, part_of
from museg_ray.weights.spans import Span, merged
from tests.learner.rank_processes import RankProcesses
from tests.weights.weight_files import exported

StartLearner = Callable[..., Learner]
MakeGroup = Callable[..., Group]
Steps = Sequence[Sequence[Group]]
Trained = tuple[list[dict[str, float]], dict[str, torch.Tensor]]
"""Metrics of each step, and the weights after the last one."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank finds, and what it writes of the weights after the last step."""

    metrics: list[dict[str, float]]
    layout: Layout
    written: dict[Span, bytes]
    gathered: dict[str, torch.Tensor]


@contextmanager
def no_weight_stays_gathered() -> Iterator[None]:
    """ZeRO 3 keeps weights as small as those of the tiny model whole on every rank: a rank that calls a layer more
    often than another would then not be noticed."""
    initialize = deepspeed.initialize

    def start(config: dict[str, Any], **arguments: Any) -> Any:
        zero = config["zero_optimization"] | {"stage3_param_persistence_threshold": 0}
        return initialize(config=config | {"zero_optimization": zero}, **arguments)

    with patch.object(deepspeed, "initialize", start):
        yield


def train(
    rank: Rank,
    config: Config,
    model_dir: Path,
    steps: Steps,
    clips: Mapping[str, Clip],
    first_step: int = 1,
    resume_from: Path | None = None,
    save_to: Path | None = None,
) -> Share:
    """Updates on one rank."""
    with no_weight_stays_gathered():
        learner = Learner(config, model_dir, rank, resume_from)
    try:
        metrics = []
        for step, groups in enumerate(steps, start=first_step):
            mine = {key: clips[key] for key in learner.clip_keys(groups)}
            metrics.append(learner.update(groups, mine, step))
        if save_to is not None:
            learner.snapshot().write(save_to)
        return share_of(learner, metrics)
    finally:
        learner._engine.destroy()  # DeepSpeed's hooks and buffers


def share_of(learner: Learner, metrics: list[dict[str, float]]) -> Share:
    layout, rank = learner.weight_layout, learner._rank
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(layout.size_bytes)
        spans = learner.write_weights(1, WritePlace(Path(file.name), rank.index, rank.count))
        content = Path(file.name).read_bytes()
    whole = dict(policy_weights(learner._engine, learner._config.learner))
    parts = {part_of(name) for name in layout.offsets}  # the others are frozen
    gathered = {name: weight for name, weight in whole.items() if part_of(name) in parts}
    return Share(metrics, layout, {span: content[slice(*span)] for span in spans}, gathered)


def joined(shares: Sequence[Share]) -> Trained:
    """What the ranks have written together: each byte once, and bit for bit the weights that each gathers."""
    layout, content = shares[0].layout, bytearray(shares[0].layout.header)
    content += bytes(layout.size_bytes - len(content))
    for share in shares:
        for (start, end), written in share.written.items():
            content[start:end] = written
    spans = [span for share in shares for span in share.written]
    assert sum(end - start for start, end in spans) == layout.size_bytes - len(layout.header)
    assert merged(spans) == [(len(layout.header), layout.size_bytes)]
    weights = load(bytes(content))
    for share in shares:
        assert share.gathered.keys() == weights.keys()
        assert all(torch.equal(weight, weights[name]) for name, weight in share.gathered.items())
    return shares[0].metrics, weights


def assert_same(one: Trained, other: Trained, tolerance: float = 1e-5) -> None:
    for step, (metrics, expected) in enumerate(zip(one[0], other[0], strict=True)):
        assert metrics.keys() == expected.keys()
        for name, value in metrics.items():
            if name not in (names.LEARNER_SEQUENCES, names.LEARNER_TOKENS):
                assert value == pytest.approx(expected[name], rel=1e-4, abs=1e-5), f"{name} in step {step}"
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=0, atol=tolerance, msg=name)


@pytest.fixture
def steps(make_group: MakeGroup) -> Steps:
    """Two steps whose groups do not deal evenly: three and one, so that a rank has nothing of its own in the second."""
    return [
        [
            make_group([[40, 41, 42, 43], [50, 51, 52], []], [1.0, -0.5, -0.5]),
            make_group([[60], [61, 62]], [-1.0, 1.0]),
            make_group([[70] * 9, [71] * 5], [0.3, -0.3]),
        ],
        [make_group([[50, 51, 52], [40, 41]], [0.7, -0.7])],
    ]


@pytest.fixture
def clips(clip: Clip) -> dict[str, Clip]:
    return {clip.key: clip}


@pytest.fixture
def small_rate(config: Config) -> Config:
    """Adam turns rounding in a gradient near 0 into a part of the rate."""
    config.learner.learning_rate = 1e-4
    config.learner.max_grad_norm = 0.5
    config.learner.chunk_tokens = 4  # the ranks' packs need different numbers of chunks
    return config


@pytest.mark.parametrize(
    ("zero_stage", "loss_mean"), [(0, "sequence"), (1, "sequence"), (2, "sequence"), (3, "sequence"), (2, "token")]
)
def test_two_ranks_make_the_updates_of_one(
    two_ranks: RankProcesses,
    small_rate: Config,
    tiny_model_dir: Path,
    steps: Steps,
    clips: dict[str, Clip],
    zero_stage: int,
    loss_mean: str,
) -> None:
    small_rate.algo.beta, small_rate.algo.loss_mean = 0.04, loss_mean
    alone = joined([train(Rank(), small_rate, tiny_model_dir, steps, clips)])
    small_rate.learner.zero_stage = zero_stage
    together = joined(two_ranks.run(train, small_rate, tiny_model_dir, steps, clips))
    assert_same(together, alone)


@pytest.mark.parametrize("setting", ["sharded", "cpu", "offload", "frozen", "lora", "epochs", "checkpointing"])
def test_two_ranks_with_zero_3_make_the_updates_of_one_rank_without_in_every_setting(
    two_ranks: RankProcesses,
    small_rate: Config,
    tiny_model_dir: Path,
    steps: Steps,
    clips: dict[str, Clip],
    setting: str,
) -> None:
    small_rate.algo.beta, small_rate.learner.zero_stage = 0.04, 0
    learner = small_rate.learner
    if setting == "frozen":
        learner.train_vision = False
    if setting == "lora":
        learner.lora.rank, learner.reference, learner.train_vision = 4, "lora_off", False
        learner.train_merger = False
    if setting == "epochs":
        small_rate.algo.num_epochs, small_rate.algo.num_minibatches = 2, 2
        learner.learning_rate /= 2  # every further update adds its rounding
    learner.gradient_checkpointing = setting == "checkpointing"
    alone = joined([train(Rank(), small_rate, tiny_model_dir, steps, clips)])
    learner.zero_stage = 3
    learner.offload_optimizer = learner.offload_weights = setting == "offload"
    if setting in ("sharded", "cpu"):
        learner.reference = setting
    together = joined(two_ranks.run(train, small_rate, tiny_model_dir, steps, clips))
    assert_same(together, alone)


@pytest.mark.parametrize(
    ("written_by", "read_by"),  # (ranks, ZeRO stage)
    [((1, 0), (2, 3)), ((2, 3), (1, 2)), ((2, 2), (2, 0))],
)
def test_a_checkpoint_goes_on_with_any_number_of_ranks_and_any_zero_stage(
    two_ranks: RankProcesses,
    small_rate: Config,
    tiny_model_dir: Path,
    steps: Steps,
    clips: dict[str, Clip],
    tmp_path: Path,
    written_by: tuple[int, int],
    read_by: tuple[int, int],
) -> None:
    small_rate.algo.beta = 0.04

    def run(place: tuple[int, int], *args: object) -> Trained:
        num_ranks, small_rate.learner.zero_stage = place
        if num_ranks == 2:
            return joined(two_ranks.run(train, small_rate, tiny_model_dir, *args))
        return joined([train(Rank(), small_rate, tiny_model_dir, *args)])  # type: ignore[arg-type]

    whole = run((1, 2), steps, clips)
    run(written_by, steps[:1], clips, 1, None, tmp_path)
    resumed = run(read_by, steps[1:], clips, 2, tmp_path)
    assert_same(resumed, (whole[0][1:], whole[1]))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_learner_makes_the_very_updates_of_one_that_was_not_interrupted(
    config: Config,
    start_learner: StartLearner,
    make_group: MakeGroup,
    clips: dict[str, Clip],
    tmp_path: Path,
    zero_stage: int,
    dtype: str,
) -> None:
    """Bit for bit, the KL reference of the second phase included."""
    if dtype == "bfloat16" and zero_stage == 0:
        pytest.skip("refused by the configuration")
    config.model.dtype, config.learner.zero_stage, config.algo.beta = dtype, zero_stage, 0.04
    config.learner.max_grad_norm = 1.0
    torch_dtype = getattr(torch, dtype)
    groups = [
        make_group([[40, 41], [50]], [1.0, -1.0], torch_dtype),
        make_group([[60], [61]], [1.0, -1.0], torch_dtype),
    ]
    learner = start_learner(config)
    for step in (1, 2):
        learner.update(groups[:1], clips, step)
    learner.start_phase(PhaseConfig(fresh_reference=True))
    learner.update(groups, clips, 3)
    learner.snapshot().write(tmp_path)
    resumed = start_learner(config, checkpoint=tmp_path)
    for step in (4, 5):
        expected, found = (each.update(groups, clips, step) for each in (learner, resumed))
        assert found == expected
    expected, found = exported(learner), exported(resumed)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_checkpoint_before_the_first_update_and_one_after_a_skipped_one_are_read(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clips: dict[str, Clip], tmp_path: Path
) -> None:
    good, bad = make_group([[40], [50]], [1.0, -1.0]), make_group([[40], [50]], [np.nan, 1.0])
    learner = start_learner(config)
    learner.update([bad], clips, 1)
    learner.snapshot().write(tmp_path)
    resumed = start_learner(config, checkpoint=tmp_path)
    assert resumed.update([good], clips, 2) == learner.update([good], clips, 2)


def test_rates_of_vision_tower_and_merger_are_their_own(
    config: Config, start_learner: StartLearner, make_group: MakeGroup, clips: dict[str, Clip]
) -> None:
    config.learner = replace(config.learner, vision_learning_rate=0.0, merger_learning_rate=1e-5)
    learner = start_learner(config)
    before = exported(learner)
    learner.update([make_group([[40], [50]], [1.0, -1.0])], clips, 1)
    moved: dict[str, float] = {"tower": 0.0, "merger": 0.0, "language": 0.0}
    for name, tensor in exported(learner).items():
        part = "merger" if ".merger." in name else "tower" if ".visual." in name else "language"
        moved[part] = max(moved[part], (tensor - before[name]).abs().max().item())
    assert moved["tower"] == 0.0
    assert moved["merger"] == pytest.approx(1e-5, rel=0.05)  # Adam's first step is the rate itself
    assert moved["language"] == pytest.approx(1e-3, rel=0.05)
