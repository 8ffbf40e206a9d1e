"""Weights pushed to a real engine while it samples."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from vllm.outputs import CompletionOutput, WeightVersionSpan

from museg_ray.errors import WeightSyncError
from museg_ray.rollout.engine import version_spans
from museg_ray.types import Clip, Group, VersionSpan
from tests.rollout.one_engine import SAMPLING, Rollout, Weights, assert_same
from tests.weights.weight_files import weights_file

LONG = replace(SAMPLING, max_completion_tokens=200)


@pytest.fixture
def pushing(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Group, Group]]:
    """`pushing(way, weights, clip)`: a long group with a push in its middle, and one begun after that."""

    def run(way: str, weights: Weights, clip: Clip) -> tuple[Group, Group]:
        monkeypatch.setattr(rollout.engine, "_on_push", way)
        version = rollout.engine.version

        async def sample_and_push() -> tuple[Group, Group]:
            first = asyncio.ensure_future(rollout.generate(clip, LONG))
            await asyncio.sleep(0.5)
            assert not first.done()
            push = asyncio.ensure_future(rollout.engine.update_weights(version + 1, file))
            await asyncio.sleep(0)
            later = asyncio.ensure_future(rollout.generate(clip, LONG, seed=11))
            confirmed = await push
            assert confirmed.version == version + 1 and confirmed.copy_s > 0
            assert (confirmed.pause_s > 1e-5) is (confirmed.resume_s > 1e-5) is (way == "continue")
            return await first, await later

        with weights_file(weights, version + 1) as file:
            return rollout.run(sample_and_push())

    return run


def assert_sampled_by(group: Group, reference: Any, forbidden_ids: list[int]) -> None:
    for response in group.responses:
        assert not response.spans
        expected = reference.logprobs(group.prompt_ids, response.token_ids, forbidden_ids, LONG.temperature)
        np.testing.assert_allclose(response.logprobs, expected, atol=2e-5, rtol=0)


def test_a_group_goes_on_over_a_push_and_every_token_knows_its_weights(
    rollout: Rollout,
    weights: Weights,
    noisy_weights: Weights,
    clip: Clip,
    forbidden_ids: list[int],
    reference_of: Callable[..., Any],
    pushing: Callable[..., tuple[Group, Group]],
) -> None:
    version = rollout.engine.version
    group, later = pushing("continue", noisy_weights, clip)
    assert group.weight_version == version and later.weight_version == version + 1
    mixed = [response for response in group.responses if response.spans]
    assert mixed, "no response was long enough to see the push"
    old, new = reference_of(weights, clip), reference_of(noisy_weights, clip)
    for response in mixed:
        assert [span.version for span in response.spans] == [version, version + 1]
        assert sum(span.num_tokens for span in response.spans) == len(response.token_ids)
        num_old = response.spans[0].num_tokens
        expected = old.logprobs(group.prompt_ids, response.token_ids[:num_old], forbidden_ids, LONG.temperature)
        np.testing.assert_allclose(response.logprobs[:num_old], expected, atol=2e-5, rtol=0)
        stale = old.logprobs(group.prompt_ids, response.token_ids, forbidden_ids, LONG.temperature).numpy()
        assert np.abs(response.logprobs - stale)[num_old:].max() > 1e-3, "the new weights sampled the rest"
    assert_sampled_by(later, new, forbidden_ids)


def test_nothing_that_is_cached_of_older_weights_meets_a_new_request(
    rollout: Rollout,
    noisy_weights: Weights,
    clip: Clip,
    forbidden_ids: list[int],
    reference_of: Callable[..., Any],
    pushing: Callable[..., tuple[Group, Group]],
) -> None:
    """Prompt and clip are those of a group that runs over the push: keys, values and features of both are cached."""
    rollout.sample(clip)
    _, later = pushing("continue", noisy_weights, clip)
    assert_sampled_by(later, reference_of(noisy_weights, clip), forbidden_ids)
    assert_sampled_by(rollout.sample(clip), reference_of(noisy_weights, clip), forbidden_ids)


def test_a_group_starts_anew_under_pushed_weights_with_its_own_seed(
    rollout: Rollout, noisy_weights: Weights, clip: Clip, pushing: Callable[..., tuple[Group, Group]]
) -> None:
    group, _ = pushing("restart", noisy_weights, clip)
    assert group.weight_version == rollout.engine.version
    assert_same(group, rollout.sample(clip, LONG), atol=1e-5)


def test_a_push_waits_for_the_groups_under_way_and_holds_back_new_ones(
    rollout: Rollout,
    weights: Weights,
    noisy_weights: Weights,
    clip: Clip,
    forbidden_ids: list[int],
    reference_of: Callable[..., Any],
    pushing: Callable[..., tuple[Group, Group]],
) -> None:
    group, later = pushing("wait", noisy_weights, clip)
    assert later.weight_version == group.weight_version + 1 == rollout.engine.version
    assert_sampled_by(group, reference_of(weights, clip), forbidden_ids)
    assert_sampled_by(later, reference_of(noisy_weights, clip), forbidden_ids)


@pytest.mark.parametrize("spans", [[("2", 0, 3)], [("2", 0, 1), ("3", 1, 3)], [("3", 0, 2)], None])
def test_tokens_of_weights_older_than_the_groups_or_of_unknown_ones_are_refused(
    spans: list[tuple[str, int, int]] | None,
) -> None:
    with pytest.raises(WeightSyncError, match="begun with weights 3"):
        version_spans(completion_of(spans), 3)


def test_spans_are_kept_where_newer_weights_sampled_a_part() -> None:
    assert version_spans(completion_of([("3", 0, 3)]), 3) == ()
    assert version_spans(completion_of([("3", 0, 1), ("4", 1, 3)]), 3) == (VersionSpan(3, 1), VersionSpan(4, 2))
    assert version_spans(completion_of([("4", 0, 3)]), 3) == (VersionSpan(4, 3),)


def completion_of(spans: list[tuple[str, int, int]] | None) -> CompletionOutput:
    versions = None if spans is None else [WeightVersionSpan(*span) for span in spans]
    return CompletionOutput(0, "", [5, 6, 7], None, None, weight_versions=versions)
