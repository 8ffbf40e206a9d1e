"""A whole step of the learner equals GRPO written out from the formula: every response as a row of its own through the
stock model, plain torch AdamW.

Rate and tolerance: Adam turns rounding in a gradient near 0 into a part of the rate. A wrong sign or term moves a
weight by up to twice the rate in each update, here 2e-4; found equal is what differs by less than a tenth of the rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from museg_ray.config.learning import AlgoConfig
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.learner.learner import Learner
from museg_ray.metrics import names
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.positions import completion_positions, prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import VisionSpec, forbidden_token_ids, load_policy, load_tokenizer, load_vision_spec
from museg_ray.types import Clip, GroundingQuery, Group, Issue, Response, RewardParts
from tests.model.timed_prompt import expand_timed_video
from tests.weights.weight_files import exported

StartLearner = Callable[..., Learner]

RATE = 1e-4
TOLERANCE = 1e-5
TEMPERATURE = 0.9
FORBIDDEN = -1
"""In the lengths below: a response of three tokens, the second of which may not be sampled."""
GROUPS = [("short", [4, 0, 7]), ("wide", [3, 1]), ("short", [FORBIDDEN, 5, 2, 2]), ("wide", [6, 6])]
"""Clip and lengths of the responses: groups of unlike sizes, one clip twice at each size."""


def make_clip(key: str, num_frames: int, height: int, width: int, multiple: int) -> Clip:
    """A frame a second; height and width in tokens."""
    size = (num_frames, height * multiple, width * multiple, 3)
    frames = np.random.default_rng(num_frames).integers(0, 256, size, dtype=np.uint8)
    return Clip(key, f"{key}.mp4", frames, np.arange(num_frames, dtype=np.float32), float(num_frames))


@dataclass
class Stock:
    """The stock model with all that a row needs."""

    folder: Path
    spec: VisionSpec
    bias: Tensor  # [V]
    clips: dict[str, Clip]
    prompts: dict[str, list[int]]
    """By clip."""
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = load_policy(self.folder, torch.float32)

    def row(self, group: Group, response: Response) -> tuple[Tensor, Tensor]:
        """[C] log-probs and [C] entropies of one response."""
        clip, num_tokens = self.clips[group.clip_key], len(response.token_ids)
        if not num_tokens:
            return torch.empty(0), torch.empty(0)
        grid = video_grid(clip.frames, self.spec)
        interval_s = seconds_per_grid(clip.sample_fps, self.spec, torch.float32)
        prompt = prompt_positions(group.prompt_ids, grid, interval_s, self.spec)
        ids = torch.tensor([*group.prompt_ids, *response.token_ids])[None]
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=torch.cat([prompt, completion_positions(prompt, num_tokens)], dim=1)[:, None],
            mm_token_type_ids=(ids == self.spec.video_token_id).long() * 2,
            pixel_values_videos=patchify(clip.frames, self.spec),
            video_grid_thw=torch.tensor([grid]),
        ).logits[0, len(group.prompt_ids) - 1 : -1]
        logprobs = ((logits + self.bias) / TEMPERATURE).log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, torch.tensor(response.token_ids)[:, None])[:, 0], entropies

    def fixed(self, groups: Sequence[Group]) -> dict[int, Tensor]:
        """Log-probs by the response's `id`."""
        with torch.no_grad():
            return {id(r): self.row(each, r)[0] for each in groups for r in each.responses}

    def kept(self, response: Response) -> Tensor:
        return self.bias[list(response.token_ids)] == 0


@pytest.fixture(scope="module", params=["qwen2_5_vl"])
def stock(request: pytest.FixtureRequest, tiny_model_dir: Path, tiny_qwen3_dir: Path) -> Stock:
    family_dir = {"qwen2_5_vl": tiny_model_dir, "qwen3_vl": tiny_qwen3_dir}[request.param]
    tokenizer, spec = load_tokenizer(family_dir), load_vision_spec(family_dir)
    clips = [make_clip("short", 4, 2, 2, spec.size_multiple), make_clip("wide", 6, 1, 3, spec.size_multiple)]
    prompts = {}
    for clip in clips:
        ids, grid = chat_prompt_ids(tokenizer, f"When is it {clip.key}?"), video_grid(clip.frames, spec)
        if spec.writes_times:
            prompts[clip.key] = expand_timed_video(tokenizer, ids, grid, clip.times_s, spec)
        else:
            prompts[clip.key] = expand_video(ids, spec.num_video_tokens(grid), spec)
    vocab_size = load_policy(family_dir, torch.float32).config.text_config.vocab_size
    bias = torch.zeros(vocab_size)
    bias[forbidden_token_ids(tokenizer, vocab_size)] = -100.0
    return Stock(family_dir, spec, bias, {clip.key: clip for clip in clips}, prompts)


@pytest.fixture(scope="module")
def steps(stock: Stock) -> list[list[Group]]:
    """Two steps of groups that the first policy "sampled", with rollout log-probs that are off by about 0.4 nats."""
    rng = np.random.default_rng(0)
    allowed = (stock.bias == 0).nonzero()[:, 0].tolist()
    no_token = len(stock.bias) - 1

    def tokens(length: int) -> list[int]:
        if length == FORBIDDEN:
            first, last = rng.choice(allowed, 2)
            return [int(first), no_token, int(last)]
        return rng.choice(allowed, length).tolist()

    return [
        [scored(stock, clip, [tokens(each) for each in lengths], rng) for clip, lengths in GROUPS] for _ in range(2)
    ]


def scored(stock: Stock, clip: str, completions: Sequence[Sequence[int]], rng: np.random.Generator) -> Group:
    query = GroundingQuery("test/0", f"{clip}.mp4", "it", ((0.0, 1.0),))
    empty = np.empty(0, np.float32)
    unknown = tuple(Response(tuple(tokens), empty, "", True) for tokens in completions)
    group = Group(
        Issue(0, query, "only", 0), clip, stock.clips[clip].duration_s, tuple(stock.prompts[clip]), unknown, 0
    )
    with torch.no_grad():
        exact = [stock.row(group, response)[0].numpy() for response in unknown]
    noisy = [values + rng.normal(0, 0.4, values.shape).astype(np.float32) for values in exact]
    responses = [replace(each, logprobs=values) for each, values in zip(unknown, noisy, strict=True)]
    advantages = rng.normal(0, 1, len(completions)).astype(np.float32)
    rewards = tuple(RewardParts(0, 0, 0, 0, 0, 0) for _ in completions)
    return replace(group, responses=tuple(responses), outcomes=rewards, advantages=advantages)


@pytest.fixture
def config() -> Config:
    config = Config()
    config.model.dtype = "float32"
    config.rollout.temperature = TEMPERATURE
    config.rollout.max_completion_tokens = 9
    config.algo.beta = 0.0
    config.learner.learning_rate, config.learner.schedule = RATE, "constant"
    config.learner.max_grad_norm = 0.0
    config.learner.pack_tokens, config.learner.chunk_tokens = 70, 7
    config.train.phases = [PhaseConfig(name="only", steps=2)]
    return config


def token_losses(
    logprobs: Tensor,
    old: Tensor,
    rollout: Tensor,
    reference: Tensor,
    entropies: Tensor,
    advantage: float,
    algo: AlgoConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """[K] the loss of each token of one response, and [K] each of what is reported."""
    log_ratio = logprobs - old
    if algo.surrogate == "gspo":
        log_ratio = log_ratio.mean().expand_as(log_ratio)
    ratio = torch.exp(log_ratio)
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high) * advantage)
    clipped = ratio > 1 + algo.clip_high if advantage > 0 else ratio < 1 - algo.clip_low
    if algo.dual_clip and advantage < 0:
        objective = objective.clamp(min=algo.dual_clip * advantage)
        clipped |= ratio > algo.dual_clip
    if algo.surrogate == "cispo":
        weighed = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high).detach()
        objective, clipped = weighed * advantage * logprobs, weighed != ratio
    gap = old - rollout
    reduced = {"token": gap, "sequence": gap.sum().expand_as(gap), "geometric": gap.mean().expand_as(gap)}
    weight = torch.exp(reduced[algo.correction_level])
    corrected = torch.zeros_like(weight, dtype=torch.bool)
    if algo.correction == "none":
        weight = torch.ones_like(weight)
    elif algo.correction == "truncate":
        corrected, weight = weight > algo.correction_limit, weight.clamp(max=algo.correction_limit)
    else:
        corrected = (weight > algo.correction_limit) | (weight < 1 / algo.correction_limit)
        weight = torch.where(corrected, 0.0, weight)
        clipped = clipped & ~corrected  # what the mask took is not the clip's
    d = reference - logprobs
    kl = {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - 1 - d}
    losses = -weight * objective + algo.beta * kl[algo.kl_estimator] - algo.entropy_bonus * entropies
    shown = {
        names.LEARNER_CLIPPED_SHARE: clipped,
        names.LEARNER_CORRECTION: weight,
        names.LEARNER_CORRECTED_SHARE: corrected,
        names.LEARNER_ENTROPY: entropies,
    } | ({names.LEARNER_KL: kl["k3"]} if algo.beta else {})
    return losses, {name: values.detach().float() for name, values in shown.items()}


class PlainGrpo:
    """GRPO without packs: what the learner must equal."""

    def __init__(self, stock: Stock, config: Config) -> None:
        self.stock, self.reference, self.config = (Stock(*_arguments(stock)), Stock(*_arguments(stock)), config)
        learner, model = config.learner, self.stock.model
        if not learner.train_vision:
            model.model.visual.requires_grad_(False)
            for name, module in model.model.visual.named_modules():
                if "merger" in name:
                    module.requires_grad_(True)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=learner.learning_rate, betas=learner.adam_betas, weight_decay=learner.weight_decay
        )

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """One step of the learner, and its metrics."""
        algo = self.config.algo
        self.old, self.references = self.stock.fixed(groups), self.reference.fixed(groups)
        size = len(groups) // algo.num_minibatches
        self.sums: dict[str, float] = {}
        losses, norms = [], []
        for _ in range(algo.num_epochs):
            for first in range(0, len(groups), size):
                self.optimizer.zero_grad()
                loss = self.loss(groups[first : first + size])
                loss.backward()
                limit = self.config.learner.max_grad_norm or torch.inf
                norms.append(torch.nn.utils.clip_grad_norm_(self.stock.model.parameters(), limit).item())
                losses.append(loss.item())
                self.optimizer.step()
        weight = self.sums.pop("weight")
        means = {name: total / weight for name, total in self.sums.items()}
        responses = [response for each in groups for response in each.responses]
        gaps = [(self.old[id(r)] - torch.tensor(r.logprobs))[self.stock.kept(r)].abs() for r in responses]
        return means | {
            names.LEARNER_LOSS: sum(losses) / len(losses),
            names.LEARNER_GRAD_NORM: sum(norms) / len(norms),
            names.LEARNER_UPDATES: len(losses),
            names.LEARNER_SKIPPED: 0,
            names.PARITY_GAP_MEAN: torch.cat(gaps).mean().item(),
            names.PARITY_GAP_MAX: torch.cat(gaps).max().item(),
        }

    def loss(self, groups: Sequence[Group]) -> Tensor:
        """Of one update."""
        algo = self.config.algo
        num_tokens = sum(int(self.stock.kept(r).sum()) for each in groups for r in each.responses)
        total = torch.zeros(())
        for each in groups:
            for response, advantage in zip(each.responses, each.advantages, strict=True):
                kept = self.stock.kept(response)
                if not kept.any():
                    continue
                share = {
                    "sequence": 1 / (len(groups) * len(each.advantages) * int(kept.sum())),
                    "token": 1 / num_tokens,
                    "constant": 1 / (len(groups) * len(each.advantages) * self.config.rollout.max_completion_tokens),
                }[algo.loss_mean]
                logprobs, entropies = self.stock.row(each, response)
                old, rollout = self.old[id(response)], torch.tensor(response.logprobs)
                losses, shown = token_losses(
                    logprobs[kept],
                    old[kept],
                    rollout[kept],
                    self.references[id(response)][kept],
                    entropies[kept],
                    float(advantage),
                    algo,
                )
                total = total + share * losses.sum()
                for name, values in (shown | {"weight": torch.ones(int(kept.sum()))}).items():
                    self.sums[name] = self.sums.get(name, 0.0) + share * values.sum().item()
        return total


def _arguments(stock: Stock) -> tuple[Any, ...]:
    return stock.folder, stock.spec, stock.bias, stock.clips, stock.prompts


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return exported(learner)


def assert_close_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """In each tensor but a few elements: of 50,000 there is about one whose gradient is at rounding in an update."""
    for name, weight in found.items():
        difference = (weight - expected[name].detach()).abs()
        assert (difference > TOLERANCE).sum() <= 3, f"{name}: {difference.max()}"
        assert difference.max() < 10 * RATE, name


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"beta": 0.04},
    "no reference": {},
    "each token": {"loss_mean": "token", "beta": 0.04},
    "constant": {"loss_mean": "constant"},
    "k1": {"beta": 0.3, "kl_estimator": "k1"},
    "k2": {"beta": 0.3, "kl_estimator": "k2"},
    "entropy": {"entropy_bonus": 0.1},
    "truncate": {"correction": "truncate", "correction_limit": 1.3},
    "mask": {"correction": "mask", "correction_limit": 1.3, "beta": 0.04},
    "epochs": {"num_epochs": 3, "clip_low": 0.02, "clip_high": 0.02},
    "clip higher": {"num_epochs": 3, "clip_low": 0.01, "clip_high": 0.05},
    "dual clip": {"num_epochs": 3, "clip_low": 0.02, "clip_high": 0.02, "dual_clip": 1.01, "beta": 0.04},
    "minibatches": {"num_minibatches": 2, "loss_mean": "token", "beta": 0.04},
    "gspo": {"surrogate": "gspo", "num_epochs": 3, "clip_low": 0.005, "clip_high": 0.005, "beta": 0.04},
    "cispo": {"surrogate": "cispo", "num_epochs": 3, "clip_low": 0.02, "clip_high": 0.02, "loss_mean": "token"},
    "product over a response": {"correction": "truncate", "correction_level": "sequence", "correction_limit": 1.3},
    "gspo, geometric mean over a response": {
        "surrogate": "gspo",
        "num_epochs": 2,
        "clip_low": 0.002,
        "clip_high": 0.003,
        "correction": "mask",
        "correction_level": "geometric",
        "correction_limit": 1.3,
    },
    "one group an update": {"num_minibatches": 4, "clip_low": 0.02},
    "all": {
        "beta": 0.1,
        "kl_estimator": "k2",
        "loss_mean": "token",
        "clip_low": 0.02,
        "clip_high": 0.03,
        "dual_clip": 1.05,
        "entropy_bonus": 0.01,
        "correction": "truncate",
        "correction_limit": 1.2,
        "num_epochs": 2,
        "num_minibatches": 2,
    },
}


def assert_steps_equal(
    config: Config, stock: Stock, steps: Sequence[Sequence[Group]], start_learner: StartLearner
) -> list[dict[str, float]]:
    """The learner's metrics of each step."""
    learner, plain = start_learner(config, stock.folder), PlainGrpo(stock, config)
    found = []
    for number, groups in enumerate(steps, start=1):
        expected = plain.step(groups)
        found.append(learner.update(groups, stock.clips, number))
        for name, value in found[-1].items():
            if name in expected:
                assert value == pytest.approx(expected[name], rel=2e-4, abs=2e-5), f"{name} in step {number}"
    assert_close_weights(weights_of(learner), dict(plain.stock.model.named_parameters()))
    return found


IN_BOTH_FAMILIES = ["paper", "all"]
CASES = [("qwen2_5_vl", name) for name in VARIANTS] + [("qwen3_vl", name) for name in IN_BOTH_FAMILIES]


@pytest.mark.parametrize(("stock", "variant"), CASES, indirect=["stock"])
def test_two_steps_equal_plain_grpo(
    variant: str, config: Config, stock: Stock, steps: list[list[Group]], start_learner: StartLearner
) -> None:
    algo = config.algo = AlgoConfig(**({"beta": 0.0} | VARIANTS[variant]))
    if algo.correction_level == "geometric":  # whose gradients are the smallest, and so the nearest to rounding
        config.learner.learning_rate /= 4
    _, second = assert_steps_equal(config, stock, steps, start_learner)
    assert second[names.LEARNER_SEQUENCES] >= 4 * algo.num_epochs, "the groups fill several packs"
    assert (second[names.LEARNER_CLIPPED_SHARE] > 0.05) == (algo.num_epochs * algo.num_minibatches > 1)
    if algo.correction != "none":
        assert 0.1 < second[names.LEARNER_CORRECTED_SHARE] < 0.9
    if algo.beta:
        assert second[names.LEARNER_KL] > 1e-3


SETTINGS: dict[str, dict[str, Any]] = {
    "frozen": {"train_vision": False},
    "frozen, checkpointing": {"train_vision": False, "gradient_checkpointing": True},
    "checkpointing": {"gradient_checkpointing": True},
    "clipped gradient": {"max_grad_norm": 0.5},
    "decay": {"weight_decay": 0.3, "adam_betas": (0.8, 0.9)},
    "one pack": {"pack_tokens": 4096, "chunk_tokens": 1024},
    "dense": {"attention": "dense"},
    "zero 0": {"zero_stage": 0},
    "zero 3": {"zero_stage": 3, "reference": "sharded", "gradient_checkpointing": True, "chunk_tokens": 2},
    "zero 3, frozen": {"zero_stage": 3, "train_vision": False, "attention": "dense"},
}
SETTING_CASES = [("qwen2_5_vl", name) for name in SETTINGS] + [
    ("qwen3_vl", name) for name in ("frozen, checkpointing", "zero 3", "zero 3, frozen")
]


@pytest.mark.parametrize(("stock", "setting"), SETTING_CASES, indirect=["stock"])
def test_two_steps_equal_plain_grpo_in_every_setting(
    setting: str, config: Config, stock: Stock, steps: list[list[Group]], start_learner: StartLearner
) -> None:
    config.algo = AlgoConfig(beta=0.04, entropy_bonus=0.01)
    config.learner = replace(config.learner, **SETTINGS[setting])
    assert_steps_equal(config, stock, steps, start_learner)
