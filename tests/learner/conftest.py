"""Groups to learn from, with the log-probs that the policy itself gives to their tokens."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.learner.learner import Learner
from museg_ray.model.packing import Pack, Row, pack_rows
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.policy import PolicyModel, Videos
from museg_ray.model.positions import prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import forbidden_token_ids, load_policy, load_tokenizer, load_vision_spec
from museg_ray.types import Clip, GroundingQuery, Group, Issue, Response, RewardParts
from tests.learner.rank_processes import RankProcesses

QUERY = GroundingQuery(
    query_id="test/0", video="test.mp4", question="the red circle is visible", segments=((1.0, 2.0),)
)

Completions = Sequence[Sequence[int]]
PolicyInputs = Callable[..., tuple[Pack, Videos]]


@pytest.fixture
def config() -> Config:
    """Two steps in float32, without reference and clipping."""
    config = Config()
    config.model.dtype = "float32"
    config.algo.beta = 0.0
    config.learner.learning_rate = 1e-3
    config.learner.schedule = "constant"
    config.learner.max_grad_norm = 0.0
    config.train.phases = [PhaseConfig(name="only", steps=2)]
    return config


@pytest.fixture
def start_learner(tiny_model_dir: Path) -> Iterator[Callable[..., Learner]]:
    """Starts learners on the tiny model, or on that of another folder, and closes them after the test."""
    started = []

    def start(config: Config, model_dir: Path = tiny_model_dir, checkpoint: Path | None = None) -> Learner:
        started.append(Learner(config, model_dir, checkpoint=checkpoint))
        return started[-1]

    yield start
    for learner in started:
        learner._engine.destroy()  # DeepSpeed's hooks and buffers


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankProcesses]:
    """Two processes in one process group; a learner at a time runs on both."""
    processes = RankProcesses(2)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def load_at(tiny_model_dir: Path) -> Callable[[torch.dtype, float], PolicyModel]:
    """Loads the tiny model as a policy of some temperature that no learner knows of."""

    def load(dtype: torch.dtype, temperature: float) -> PolicyModel:
        model = load_policy(tiny_model_dir, dtype)
        forbidden = forbidden_token_ids(load_tokenizer(tiny_model_dir), model.config.text_config.vocab_size)
        return PolicyModel(model, forbidden, temperature, "dense", 1024)

    return load


@pytest.fixture
def fresh_policy(
    load_at: Callable[[torch.dtype, float], PolicyModel], config: Config
) -> Callable[[torch.dtype], PolicyModel]:
    return lambda dtype: load_at(dtype, config.rollout.temperature)


@pytest.fixture(scope="session")
def sampled_from(
    load_at: Callable[[torch.dtype, float], PolicyModel],
) -> Callable[[torch.dtype, float], PolicyModel]:
    """The policies that groups come from, each loaded once: nobody changes them."""
    return cache(load_at)


@pytest.fixture
def policy_inputs(tiny_model_dir: Path, clip: Clip) -> PolicyInputs:
    """The policy's arguments for completions of one question about `clip`."""
    tokenizer, spec = load_tokenizer(tiny_model_dir), load_vision_spec(tiny_model_dir)
    grid = video_grid(clip.frames, spec)
    prompt_ids = expand_video(chat_prompt_ids(tokenizer, QUERY.question), spec.num_video_tokens(grid), spec)

    def make(completions: Completions, dtype: torch.dtype = torch.float32) -> tuple[Pack, Videos]:
        positions = prompt_positions(prompt_ids, grid, seconds_per_grid(clip.sample_fps, spec, dtype), spec)
        pack = pack_rows([Row(prompt_ids, positions, completions)], spec.video_token_id)
        return pack, Videos(torch.tensor([grid]), patchify(clip.frames, spec))

    return make


@pytest.fixture
def make_group(
    sampled_from: Callable[[torch.dtype, float], PolicyModel],
    policy_inputs: PolicyInputs,
    clip: Clip,
    config: Config,
) -> Callable[..., Group]:
    """A scored group about `clip`, with log-probs under the tiny model's own weights in `dtype`."""

    def make(completions: Completions, advantages: Sequence[float], dtype: torch.dtype = torch.float32) -> Group:
        pack, videos = policy_inputs(completions, dtype)
        with torch.no_grad():
            logprobs = sampled_from(dtype, config.rollout.temperature)(pack, videos)[0].numpy()
        ends = np.cumsum([len(completion) for completion in completions])[:-1]
        responses = tuple(
            Response(token_ids=tuple(completion), logprobs=part, text="", finished=True)
            for completion, part in zip(completions, np.split(logprobs, ends), strict=True)
        )
        prompt_ids = tuple(pack.input_ids[: pack.spans[0].num_prompt].tolist())
        issue, rewards = Issue(0, QUERY, "only", 0), (RewardParts(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),) * len(completions)
        of_each = np.array(advantages, dtype=np.float32)
        return Group(issue, clip.key, clip.duration_s, prompt_ids, responses, 0, rewards, of_each)

    return make
