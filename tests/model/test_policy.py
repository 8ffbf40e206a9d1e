"""The policy: packed groups equal separate rows through the stock model, in log-probs, entropies and gradients.

Tolerances, in float32: a log-prob of 8 nats has a rounding step of 1e-6, and a few of them add up on the way through
the model, so log-probs are compared to 1e-5. Gradients are compared by parameter to 1e-5 of their norm; a parameter
whose gradient is nearly nothing (1e-3 of the largest one) is compared to 1e-5 of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from museg_ray.model.packing import Pack, Row, pack_rows
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.policy import PolicyModel, Videos
from museg_ray.model.positions import completion_positions, prompt_positions, seconds_per_grid
from museg_ray.model.prompt import chat_prompt_ids, expand_video
from museg_ray.model.qwen_vl import (
    FORBIDDEN_LOGIT_BIAS,
    VisionSpec,
    end_token_id,
    forbidden_token_ids,
    load_policy,
    load_tokenizer,
    load_vision_spec,
)
from museg_ray.rollout.engine import RolloutEngine
from tests.model.timed_prompt import expand_timed_video

TEMPERATURE = 0.9
SHAPES = [(4, 2, 2), (6, 2, 3), (2, 3, 1)]
"""Videos: frames, then height and width in tokens."""
QUESTIONS = ["When is the red circle visible?", "A dog barks", ""]
Completions = Sequence[Sequence[int]]
Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    positions: torch.Tensor  # [3, P]
    patches: torch.Tensor
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Family:
    """What a family's tests share: the model to test, and the stock one with the same weights."""

    tokenizer: PreTrainedTokenizerBase
    spec: VisionSpec
    policy: PolicyModel
    stock: Any
    prompts: list[Prompt]
    forbidden: list[int]
    allowed: list[int]

    def pack(self, groups: Sequence[tuple[int, Completions]]) -> tuple[Pack, Videos]:
        """The policy's arguments for groups of (index of the prompt, completions)."""
        prompts = [self.prompts[index] for index, _ in groups]
        rows = [Row(prompt.ids, prompt.positions, c) for prompt, (_, c) in zip(prompts, groups, strict=True)]
        grids = torch.tensor([prompt.grid for prompt in prompts])
        return pack_rows(rows, self.spec.video_token_id), Videos(grids, torch.cat([p.patches for p in prompts]))

    def stock_row(self, prompt: Prompt, completion: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """[C] log-probs and [C] entropies of one completion as a row of its own.

        The stock model takes a sampled video placeholder for a video; `twin` embeds it as the plain token it is.
        """
        embedded = [self.twin if token == self.spec.video_token_id else token for token in completion]
        ids = torch.tensor([*prompt.ids, *embedded])[None]
        positions = torch.cat([prompt.positions, completion_positions(prompt.positions, len(completion))], dim=1)
        logits = self.stock(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions[:, None],
            mm_token_type_ids=(ids == self.spec.video_token_id).long() * 2,
            pixel_values_videos=prompt.patches,
            video_grid_thw=torch.tensor([prompt.grid]),
        ).logits[0, len(prompt.ids) - 1 : -1]
        bias = torch.zeros(logits.shape[-1]).index_fill(0, torch.tensor(self.forbidden), FORBIDDEN_LOGIT_BIAS)
        logprobs = ((logits + bias) / TEMPERATURE).log_softmax(-1)
        return logprobs.gather(-1, torch.tensor(completion)[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)

    def stock_rows(self, groups: Sequence[tuple[int, Completions]]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self.stock_row(self.prompts[index], c) for index, completions in groups for c in completions if c]
        if not rows:
            return torch.empty(0), torch.empty(0)
        logprobs, entropies = zip(*rows, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    @property
    def twin(self) -> int:
        """A row of the vocabulary that no token has, with the input embedding of the video placeholder."""
        return len(self.tokenizer)


@pytest.fixture(scope="module")
def family(family_dir: Path) -> Family:
    tokenizer, spec = load_tokenizer(family_dir), load_vision_spec(family_dir)
    policy, stock = (load_policy(family_dir, torch.float32) for _ in range(2))
    vocab_size = stock.config.text_config.vocab_size
    assert len(tokenizer) + 1 < vocab_size, "the vocabulary has padding"
    for model in (policy, stock):
        with torch.no_grad():
            embeddings = model.get_input_embeddings().weight
            embeddings[len(tokenizer)] = embeddings[spec.video_token_id]
    forbidden = forbidden_token_ids(tokenizer, vocab_size)
    allowed = sorted(set(range(vocab_size)) - set(forbidden))
    prompts = [prompt_of(tokenizer, spec, *each) for each in zip(QUESTIONS, SHAPES, strict=True)]
    wrapped = PolicyModel(policy, forbidden, TEMPERATURE, "split", 1024)
    return Family(tokenizer, spec, wrapped, stock, prompts, forbidden, allowed)


def prompt_of(
    tokenizer: PreTrainedTokenizerBase, spec: VisionSpec, question: str, shape: tuple[int, int, int]
) -> Prompt:
    size = (shape[0], shape[1] * spec.size_multiple, shape[2] * spec.size_multiple, 3)
    frames = np.random.default_rng(sum(shape)).integers(0, 256, size, dtype=np.uint8)
    grid = video_grid(frames, spec)
    ids = chat_prompt_ids(tokenizer, question)
    if spec.writes_times:
        ids = expand_timed_video(tokenizer, ids, grid, np.arange(len(frames), dtype=np.float32), spec)
    else:
        ids = expand_video(ids, spec.num_video_tokens(grid), spec)
    positions = prompt_positions(ids, grid, seconds_per_grid(1.0, spec, torch.float32), spec)
    return Prompt(ids, positions, patchify(frames, spec), grid)


@dataclass(frozen=True)
class Way:
    """A setting that must not change what the policy computes."""

    attention: str = "split"
    chunk_tokens: int = 1024
    checkpointing: bool = False
    tower: str = "trained"
    """`trained`, `frozen` (runs in every pass) or `states` (ran before)."""


def use(family: Family, way: Way) -> None:
    policy, model = family.policy, family.policy.model
    model.model.language_model.config._attn_implementation = f"museg_{way.attention}"
    policy.chunk_tokens = way.chunk_tokens
    policy.train(way.checkpointing)
    if way.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
    for each in (model, family.stock):
        each.zero_grad()
        each.requires_grad_(True)
        each.model.visual.requires_grad_(way.tower == "trained")
        for merger in policy.family.mergers(each):
            merger.requires_grad_(True)


def run(family: Family, way: Way, groups: Sequence[tuple[int, Completions]]) -> tuple[torch.Tensor, torch.Tensor]:
    pack, videos = family.pack(groups)
    if way.tower == "states":
        videos = Videos(videos.grids, None, family.policy.tower(videos))
    return family.policy(pack, videos, with_entropy=True)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> Gradients:
    """Of all trainable parameters; 0 where none reaches one."""
    model.zero_grad()
    loss.backward()
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained}


def assert_close_gradients(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys() and found
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm() / gradient.norm().clamp(min=max(1e-3 * largest, 1e-9))
        assert difference < 1e-5, f"{name}: {difference}"


def assert_equals_rows(family: Family, way: Way, groups: Sequence[tuple[int, Completions]]) -> None:
    use(family, way)
    logprobs, entropies = run(family, way, groups)
    expected_logprobs, expected_entropies = family.stock_rows(groups)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropies, expected_entropies, rtol=0, atol=1e-5)
    if not len(logprobs):
        return
    weights = torch.randn(2, len(logprobs), generator=torch.Generator().manual_seed(0))
    found = gradients(family.policy.model, (weights[0] * logprobs + weights[1] * entropies).sum())
    rows_loss = (weights[0] * expected_logprobs + weights[1] * expected_entropies).sum()
    assert_close_gradients(found, gradients(family.stock, rows_loss))


def random_completions(family: Family, lengths: Sequence[int]) -> list[list[int]]:
    """Of ids that may be sampled; each a truncated one, without an end."""
    rng = np.random.default_rng(sum(lengths))
    return [rng.choice(family.allowed, length).tolist() for length in lengths]


def groups_of(family: Family, lengths: Sequence[tuple[int, list[int]]]) -> list[tuple[int, list[list[int]]]]:
    return [(prompt, random_completions(family, each)) for prompt, each in lengths]


LENGTHS: dict[str, list[tuple[int, list[int]]]] = {
    "unlike lengths": [(0, [5, 1, 9])],
    "empty ones between": [(0, [0, 7, 0, 3, 1, 0])],
    "one token": [(1, [1])],
    "equal lengths": [(2, [6, 6, 6, 6])],
    "another prompt and video": [(0, [4, 2]), (1, [3]), (2, [1, 0, 5])],
    "the same video twice": [(0, [4, 2]), (0, [0, 3])],
    "an empty group between": [(1, [2]), (0, [0, 0]), (1, [3, 3])],
}
"""Groups of a pack: the prompt's index, and the lengths of its completions."""

WAYS = {
    "split": Way(),
    "dense": Way("dense"),
    "chunks": Way(chunk_tokens=4),
    "single-token chunks": Way(chunk_tokens=1),
    "checkpointing": Way(checkpointing=True),
    "frozen": Way(tower="frozen"),
    "states": Way(tower="states"),
    "states, checkpointing, chunks, dense": Way("dense", 3, True, "states"),
    "checkpointing, chunks": Way(chunk_tokens=5, checkpointing=True),
}


@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_groups_equal_separate_rows_through_the_stock_model(family: Family, lengths: str) -> None:
    groups = groups_of(family, LENGTHS[lengths])
    for attention in ("split", "dense"):
        assert_equals_rows(family, Way(attention), groups)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_equals_separate_rows_through_the_stock_model(family: Family, way: str) -> None:
    assert_equals_rows(family, WAYS[way], groups_of(family, [(0, [4, 0, 2]), (1, [3]), (0, [5, 1])]))


@settings(max_examples=8)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 7), min_size=1, max_size=4)), min_size=1, max_size=3
    ),
    way=st.builds(
        Way,
        st.sampled_from(["split", "dense"]),
        st.sampled_from([1, 3, 1024]),
        st.booleans(),
        st.sampled_from(["trained", "frozen", "states"]),
    ),
)
def test_any_groups_in_any_way_equal_separate_rows(
    family: Family, lengths: list[tuple[int, list[int]]], way: Way
) -> None:
    assert_equals_rows(family, way, groups_of(family, lengths))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_flex_gives_the_log_probs_of_separate_rows(family: Family, lengths: str) -> None:
    """Without gradient, which it does not have on a CPU."""
    groups = groups_of(family, LENGTHS[lengths])
    use(family, Way("flex"))
    with torch.no_grad():
        found, expected = run(family, Way("flex"), groups), family.stock_rows(groups)
    for values, others in zip(found, expected, strict=True):
        torch.testing.assert_close(values, others, rtol=0, atol=1e-5)


def test_a_group_without_any_token_has_no_log_probs_and_zero_gradients(family: Family) -> None:
    for way in (Way(), Way(chunk_tokens=1), Way(checkpointing=True), Way(tower="states")):
        use(family, way)
        logprobs, entropies = run(family, way, [(0, [[], []])])
        assert logprobs.shape == entropies.shape == (0,)
        assert not any(bool(x.any()) for x in gradients(family.policy.model, logprobs.sum()).values())


def test_without_entropy_there_is_none_and_the_log_probs_are_the_same(family: Family) -> None:
    for chunk_tokens in (2, 1024):
        use(family, Way(chunk_tokens=chunk_tokens))
        pack, videos = family.pack(groups_of(family, [(0, [4, 3])]))
        logprobs, entropies = family.policy(pack, videos)
        expected, _ = family.policy(pack, videos, with_entropy=True)
        assert len(entropies) == 0 and torch.equal(logprobs, expected)


def test_no_logits_are_kept_for_the_backward_pass_but_where_one_chunk_is_all(family: Family) -> None:
    groups = groups_of(family, [(0, [5, 0, 4]), (1, [1])])
    for chunk_tokens, computed, kept in ((4, [4, 4, 2], False), (1024, [10], True)):
        use(family, Way(chunk_tokens=chunk_tokens))
        rows: list[int] = []
        shapes: list[tuple[int, ...]] = []

        def keep(x: torch.Tensor, shapes: list[tuple[int, ...]] = shapes) -> torch.Tensor:
            shapes.append(tuple(x.shape))
            return x

        hook = family.policy.model.lm_head.register_forward_pre_hook(
            lambda _, args, rows=rows: rows.append(len(args[0]))
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            run(family, Way(), groups)
        hook.remove()
        assert rows == computed
        assert any((count, len(family.policy.logit_bias)) in shapes for count in computed) == kept


def test_calls_of_the_output_head_beyond_the_last_token_change_nothing(family: Family) -> None:
    """As many as another rank's pack needs, also where there is no token at all."""
    for lengths in ([5, 0, 4], [0, 0]):
        use(family, Way(chunk_tokens=4))
        pack, videos = family.pack(groups_of(family, [(0, lengths)]))
        found = [family.policy(pack, videos, True, num_chunks) for num_chunks in (1, 6)]
        assert all(torch.equal(values, others) for values, others in zip(*found, strict=True))
        fewer, more = (gradients(family.policy.model, torch.cat(values).sum()) for values in found)
        assert all(torch.equal(gradient, more[name]) for name, gradient in fewer.items())


def test_temperature_and_forbidden_tokens_make_one_distribution(family: Family) -> None:
    use(family, Way())
    vocab_size = len(family.policy.logit_bias)
    with torch.no_grad():  # every token of the vocabulary as the first token of a completion of its own
        logprobs, entropies = run(family, Way(), [(0, [[token] for token in range(vocab_size)])])
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert logprobs[family.forbidden].max().item() < -50.0 < logprobs[family.allowed].min().item()
    torch.testing.assert_close(entropies, -(logprobs.exp() * logprobs).sum().expand(vocab_size), rtol=0, atol=1e-4)


def test_the_learner_leaves_out_exactly_what_the_engine_never_samples(family: Family) -> None:
    """The engine's own mask, built as it starts, for the size of the vocabulary that it reads from the same model."""
    vocab_size = len(family.policy.logit_bias)
    config = SimpleNamespace(get_vocab_size=lambda: vocab_size)
    llm: Any = SimpleNamespace(model_config=config, engine_core=SimpleNamespace(encoder=None))
    engine = RolloutEngine(llm, family.tokenizer, family.spec)
    is_allowed = family.policy.is_allowed(torch.arange(vocab_size))
    assert [token for token in range(vocab_size) if not is_allowed[token]] == sorted(engine._logit_bias)
    assert {family.policy.logit_bias[token].item() for token in engine._logit_bias} == set(engine._logit_bias.values())
    assert is_allowed[end_token_id(family.tokenizer)]
    assert not is_allowed[family.spec.video_token_id] and not is_allowed[len(family.tokenizer) :].any()


def hostile_completions(family: Family) -> st.SearchStrategy[list[list[int]]]:
    """Any mixture of plain tokens, the end token, placeholders, marks of vision and chat, and rows without a token."""
    hostile = st.sampled_from([*family.forbidden, end_token_id(family.tokenizer), family.spec.video_token_id])
    token = hostile | st.sampled_from(family.allowed)
    return st.lists(st.lists(token, max_size=6), min_size=1, max_size=4)


@settings(max_examples=8)
@given(data=st.data())
def test_special_tokens_in_any_place_are_tokens_like_any_other(family: Family, data: st.DataObject) -> None:
    """Not only finite: the log-probs of all tokens are those that the stock model has when a placeholder is no video.

    A forbidden token has about -110 nats, where a rounding step is 8e-6: hence the relative part.
    """
    groups = [(prompt, data.draw(hostile_completions(family))) for prompt in (0, 1)]
    use(family, Way())
    logprobs, entropies = run(family, Way(), groups)
    with torch.no_grad():
        expected_logprobs, expected_entropies = family.stock_rows(groups)
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(entropies, expected_entropies, rtol=0, atol=1e-5)
    loss = (logprobs + entropies).sum()
    assert all(bool(x.isfinite().all()) for x in gradients(family.policy.model, loss).values())
    tokens = [token for _, completions in groups for completion in completions for token in completion]
    assert family.policy.is_allowed(torch.tensor(tokens).long()).tolist() == [t in family.allowed for t in tokens]


@pytest.mark.parametrize("attention", ["split", "dense"])
def test_what_one_completion_holds_leaves_all_others_untouched(family: Family, attention: str) -> None:
    use(family, Way(attention))
    plain, hostile = family.allowed[10:14], [family.spec.video_token_id] * 3 + family.forbidden[:2]
    with torch.no_grad():
        alone, _ = run(family, Way(attention), [(0, [plain]), (1, [plain])])
        beside, _ = run(family, Way(attention), [(0, [hostile, plain]), (1, [hostile, plain, []])])
    torch.testing.assert_close(torch.cat([beside[5:9], beside[14:18]]), alone, rtol=0, atol=1e-5)


def test_each_group_sees_its_own_video(family: Family) -> None:
    """Videos in the other order give other log-probs: the comparison with rows is about something."""
    use(family, Way())
    completions = random_completions(family, [4, 4])
    prompt = family.prompts[0]
    pack, videos = family.pack([(0, completions), (0, completions)])
    other = Videos(videos.grids, torch.cat([prompt.patches, prompt.patches.flip(0)]))
    with torch.no_grad():
        same, swapped = family.policy(pack, videos)[0], family.policy(pack, other)[0]
    torch.testing.assert_close(same[:8], same[8:], rtol=0, atol=1e-5)
    torch.testing.assert_close(swapped[:8], same[:8], rtol=0, atol=1e-5)
    assert (swapped[8:] - same[8:]).abs().max() > 1e-3
