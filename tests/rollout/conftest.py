"""What the rollout tests share: a small configuration, weights, and Hugging Face as the reference."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cloudpickle
import pytest
import torch

from museg_ray.config.schema import Config, ModelConfig, RolloutConfig, VideoConfig
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.positions import completion_positions, prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids
from museg_ray.model.qwen_vl import (
    FORBIDDEN_LOGIT_BIAS,
    forbidden_token_ids,
    load_policy,
    load_tokenizer,
    load_vision_spec,
)
from museg_ray.rollout.engine import RolloutEngine
from museg_ray.rollout.vllm_setup import engine_environment
from museg_ray.types import Clip, GroundingQuery, Issue
from museg_ray.video.loader import ClipHandle
from tests.rollout import one_engine
from tests.rollout.one_engine import Rollout

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def rollout_config(stored_clip: tuple[ClipHandle, str]) -> Config:
    """Two small CPU engines, whose key-value caches hold 32 sequences of 512 tokens, and the store that has `clip`."""
    rollout = RolloutConfig(
        num_actors=2, num_threads=1, group_size=4, max_num_seqs=32, kv_cache_gib=0.125, enforce_eager=True
    )
    video = VideoConfig(store_dir=stored_clip[1])
    return Config(model=ModelConfig(dtype="float32", max_tokens=512), rollout=rollout, video=video)


@pytest.fixture(scope="session")
def query() -> GroundingQuery:
    return GroundingQuery("test/0", "test.mp4", "the red circle is visible", ((1.0, 3.0),))


@pytest.fixture(scope="session")
def issue(query: GroundingQuery) -> Issue:
    return Issue(0, query, "only", seed=7)


@pytest.fixture(scope="session")
def prompt_ids(tiny_model_dir: Path, query: GroundingQuery) -> list[int]:
    """Longer than a block of the key-value cache (128 tokens), so that responses and requests share blocks."""
    ids = chat_prompt_ids(load_tokenizer(tiny_model_dir), ", ".join([query.question] * 30))
    assert 128 < len(ids) < 256
    return ids


@pytest.fixture(scope="session")
def forbidden_ids(tiny_model_dir: Path, weights: Weights) -> list[int]:
    return forbidden_token_ids(load_tokenizer(tiny_model_dir), len(weights["model.language_model.embed_tokens.weight"]))


@pytest.fixture(scope="session")
def weights(tiny_model_dir: Path) -> Weights:
    """Those of the model folder, tied ones once."""
    return {name: tensor.detach() for name, tensor in load_policy(tiny_model_dir, torch.float32).named_parameters()}


@pytest.fixture(scope="session")
def noisy_weights(weights: Weights) -> Weights:
    """Noise on every weight: the policy after an update."""
    generator = torch.Generator().manual_seed(0)
    return {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()}


class Reference:
    """Stock Hugging Face forward passes with explicit positions: what the engine must agree with."""

    def __init__(self, model_dir: Path, weights: Weights, clip: Clip) -> None:
        self._model = load_policy(model_dir, torch.float32)
        self._model.load_state_dict(weights, strict=False)  # the tied output head follows the embedding
        spec = load_vision_spec(model_dir)
        self.video_token_id = spec.video_token_id
        self.grid = video_grid(clip.frames, spec)
        self.num_video_tokens = spec.num_video_tokens(self.grid)
        self._patches = patchify(clip.frames, spec)
        self._spec, self._interval_s = spec, seconds_per_grid(clip.sample_fps, spec, torch.float32)

    @torch.no_grad()
    def forward(self, prompt_ids: Sequence[int], completion: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states [C + 1, H] and logits [C + 1, V] that each completion token, and one more, comes from."""
        ids = torch.tensor([*prompt_ids, *completion])[None]  # [1, L]
        prompt = prompt_positions(prompt_ids, self.grid, self._interval_s, self._spec)
        positions = torch.cat([prompt, completion_positions(prompt, len(completion))], dim=1)  # [3, L]
        output = self._model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions[:, None],
            mm_token_type_ids=(ids == self.video_token_id).long() * 2,
            pixel_values_videos=self._patches,
            video_grid_thw=torch.tensor([self.grid]),
            output_hidden_states=True,
        )
        rows = slice(len(prompt_ids) - 1, None)
        return output.hidden_states[-1][0, rows], output.logits[0, rows]

    def logprobs(
        self, prompt_ids: Sequence[int], completion: Sequence[int], forbidden_ids: list[int], temperature: float
    ) -> torch.Tensor:
        """[C] of the completion's tokens under the sampling distribution."""
        logits = self.forward(prompt_ids, completion)[1][:-1]
        logits[:, forbidden_ids] += FORBIDDEN_LOGIT_BIAS
        return (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]

    def greedy(self, prompt_ids: Sequence[int], forbidden_ids: list[int], num_tokens: int) -> tuple[int, ...]:
        """The most likely completion of `num_tokens` tokens."""
        completion: list[int] = []
        for _ in range(num_tokens):
            logits = self.forward(prompt_ids, completion)[1][-1]
            logits[forbidden_ids] += FORBIDDEN_LOGIT_BIAS
            completion.append(int(logits.argmax()))
        return tuple(completion)


@pytest.fixture
def reference_of(tiny_model_dir: Path) -> Callable[[Weights, Clip], Reference]:
    """`reference_of(weights, clip)`."""
    return partial(Reference, tiny_model_dir)


SENDS_FUNCTIONS = "VLLM_ALLOW_INSECURE_SERIALIZATION"
"""So that a test can have a function run in the engine's process."""


@pytest.fixture(scope="session")
def engine_rollout(
    tiny_model_dir: Path, rollout_config: Config, query: GroundingQuery, prompt_ids: list[int]
) -> Iterator[Rollout]:
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        for name, value in engine_environment(rollout_config.rollout).items():
            patch.setenv(name, value)
        patch.setenv(SENDS_FUNCTIONS, "1")
        cloudpickle.register_pickle_by_value(one_engine)
        engine = runner.run(RolloutEngine.start(tiny_model_dir, rollout_config.model, rollout_config.rollout))
        patch.undo()  # other tests have environments of their own
        yield Rollout(runner, engine, query, prompt_ids)
        engine.close()


@pytest.fixture
def rollout(engine_rollout: Rollout, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    """The engine with the model folder's weights, whatever the test before has pushed."""
    monkeypatch.setenv(SENDS_FUNCTIONS, "1")
    engine_rollout.push(weights)
    return engine_rollout
