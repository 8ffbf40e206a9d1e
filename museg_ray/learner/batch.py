"""One update's share of a rank: its groups as packed micro-batches with what the loss needs of each token."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from museg_ray.algo.aggregation import token_weights
from museg_ray.config.schema import Config
from museg_ray.errors import LearnerError
from museg_ray.learner.packs import GroupLengths, PackPlan, plan_packs
from museg_ray.learner.rank import Rank
from museg_ray.model.family import TowerStates
from museg_ray.model.packing import Pack, Row, pack_rows
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.policy import Videos
from museg_ray.model.positions import prompt_positions, seconds_per_grid
from museg_ray.model.qwen_vl import VisionSpec
from museg_ray.types import Clip, FloatArray, Group


@dataclass(slots=True)
class MicroBatch:
    """One packed sequence with what the loss needs of its K tokens in the loss."""

    pack: Pack
    clips: tuple[Clip, ...]
    """One a span."""
    kept: torch.Tensor  # [K] which of the pack's completion tokens are in the loss
    advantages: torch.Tensor  # [K]
    weights: torch.Tensor  # [K] of `token_weights`
    responses: torch.Tensor  # [K] which response of the pack, all of whose tokens are in it
    rollout_logprobs: torch.Tensor  # [K]
    is_current: torch.Tensor  # [K] bool, sampled by the learner's own weights throughout: must have their log-probs
    num_chunks: int
    """Calls of the output head, the same for all packs of all ranks; see `Batcher._count_chunks`."""
    is_filler: bool = False
    """A pass for the sake of the other ranks."""
    old_logprobs: torch.Tensor | None = None  # [K] before the first update; None where this is the first
    reference_logprobs: torch.Tensor | None = None  # [K]
    states: TowerStates | None = None
    """Of a frozen vision tower."""


class Batcher:
    """Makes the micro-batches of one rank."""

    def __init__(
        self,
        config: Config,
        spec: VisionSpec,
        rank: Rank,
        device: torch.device,
        is_allowed: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """`is_allowed`: [N] token ids -> [N] bool, False for tokens that may not be sampled and are left out."""
        self._config = config
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._spec = spec
        self._rank = rank
        self._device = device
        self._is_allowed = is_allowed
        self._num_chunks = 1

    def micro_batches(self, groups: Sequence[Group], clips: Mapping[str, Clip], version: int) -> list[MicroBatch]:
        """This rank's micro-batches of an update over `groups`: as many as every other rank's.

        Args:
            groups: of the update, all ranks' together.
            clips: by `clip_key`; at least those of `clip_keys`.
            version: of the learner's weights.

        Raises:
            LearnerError: a log-prob of the rollout is not finite.
        """
        num_tokens = [[self._num_kept(response.token_ids) for response in group.responses] for group in groups]
        weights = token_weights(self._config.algo.loss_mean, num_tokens, self._config.rollout.max_completion_tokens)
        plans = self._plans(groups)
        self._count_chunks(plans, groups)
        return [self._micro_batch(plan, groups, weights, clips, version) for plan in plans[self._rank.index]]

    def clip_keys(self, groups: Sequence[Group]) -> set[str]:
        """The clips that this rank needs for an update over `groups`."""
        plans = self._plans(groups)[self._rank.index]
        keys = {groups[part.group].clip_key for plan in plans for part in plan}
        return keys | {_filler(groups).clip_key} if () in plans else keys

    def videos(self, batch: MicroBatch) -> Videos:
        """The micro-batch's videos for a pass: patches, computed on the device, or what a frozen tower made of them."""
        grids = torch.tensor([video_grid(clip.frames, self._spec) for clip in batch.clips])
        if batch.states is not None:
            return Videos(grids, None, batch.states)
        return Videos(grids, torch.cat([patchify(clip.frames, self._spec, self._device) for clip in batch.clips]))

    def _plans(self, groups: Sequence[Group]) -> list[list[PackPlan]]:
        """Of all ranks: each finds the same."""
        lengths = [
            GroupLengths(len(group.prompt_ids), [len(response.token_ids) for response in group.responses])
            for group in groups
        ]
        return plan_packs(lengths, self._config.learner.pack_tokens, self._rank.count)

    def _count_chunks(self, plans: Sequence[Sequence[PackPlan]], groups: Sequence[Group]) -> None:
        """How often each pass calls the output head: as often as the longest pack so far needs, of any rank.

        Under ZeRO 3 DeepSpeed gathers weights ahead, and keeps those of the head (1.1 GB in a 7B) from one call to the
        next, only while each pass calls the same modules as the one before. A call without tokens multiplies nothing.
        """
        packs = (plan for of_rank in plans for plan in of_rank)
        longest = max(sum(part.num_tokens - len(groups[part.group].prompt_ids) for part in plan) for plan in packs)
        self._num_chunks = max(self._num_chunks, math.ceil(longest / self._config.learner.chunk_tokens))

    def _num_kept(self, token_ids: Sequence[int]) -> int:
        return int(self._is_allowed(torch.tensor(token_ids, dtype=torch.long, device=self._device)).sum())

    def _micro_batch(
        self,
        plan: PackPlan,
        groups: Sequence[Group],
        weights: Sequence[FloatArray],
        clips: Mapping[str, Clip],
        version: int,
    ) -> MicroBatch:
        if not plan:
            return self._filling(_filler(groups), clips)
        chosen = [(groups[part.group], part.group, list(part.responses)) for part in plan]
        rows = [self._row(group, responses, clips[group.clip_key]) for group, _, responses in chosen]
        pack = pack_rows(rows, self._spec.video_token_id).to(self._device)
        per_token = [
            (response.logprobs, group.advantages[index], weights[place][index])
            for group, place, responses in chosen
            for index, response in zip(responses, (group.responses[i] for i in responses), strict=True)
        ]
        is_current = [_is_current(group, index, version) for group, _, responses in chosen for index in responses]
        lengths = [len(logprobs) for logprobs, _, _ in per_token]
        kept = self._is_allowed(pack.targets).nonzero()[:, 0]

        def spread(values: Sequence[float]) -> torch.Tensor:  # one a response -> [K]
            return torch.tensor(np.repeat(np.array(values, np.float32), lengths), device=self._device)[kept]

        rollout = np.concatenate([logprobs for logprobs, _, _ in per_token])
        rollout_logprobs = torch.tensor(rollout, dtype=torch.float32, device=self._device)[kept]
        if not (is_finite := rollout_logprobs.isfinite()).all():
            places = spread([place for place, (_, _, responses) in enumerate(chosen) for _ in responses])
            raise _broken_rollout(chosen[int(places[~is_finite][0])][0])
        return MicroBatch(
            pack=pack,
            clips=tuple(clips[group.clip_key] for group, _, _ in chosen),
            kept=kept,
            advantages=spread([advantage for _, advantage, _ in per_token]),
            weights=spread([weight for _, _, weight in per_token]),
            responses=torch.unique(spread(range(len(lengths))), return_inverse=True)[1],  # below K: without empty ones
            rollout_logprobs=rollout_logprobs,
            is_current=spread(is_current).bool(),
            num_chunks=self._num_chunks,
        )

    def _row(self, group: Group, responses: Sequence[int], clip: Clip) -> Row:
        grid = video_grid(clip.frames, self._spec)
        interval_s = seconds_per_grid(clip.sample_fps, self._spec, self._dtype)
        positions = prompt_positions(group.prompt_ids, grid, interval_s, self._spec)
        return Row(group.prompt_ids, positions, [group.responses[index].token_ids for index in responses])

    def _filling(self, group: Group, clips: Mapping[str, Clip]) -> MicroBatch:
        """A pass for a rank that has no part left: a prompt with one token, which is not in the loss."""
        clip = clips[group.clip_key]
        row = self._row(group, [], clip)
        row = Row(row.prompt_ids, row.positions, [[group.prompt_ids[0]]])
        none = torch.empty(0, device=self._device)
        pack = pack_rows([row], self._spec.video_token_id).to(self._device)
        return MicroBatch(
            pack, (clip,), none.long(), none, none, none.long(), none, none.bool(), self._num_chunks, is_filler=True
        )


def _broken_rollout(group: Group) -> LearnerError:
    return LearnerError(
        f"A rollout log-prob of query {group.query.query_id} (weights {group.weight_version}) is not finite: the "
        "engine computed nonsense. Set model.dtype to float32, or look into the rollout actor's log."
    )


def _is_current(group: Group, index: int, version: int) -> bool:
    """Not so of a response that went on under newer weights: it has keys and values of the older ones."""
    return group.weight_version == version and not group.responses[index].spans


def _filler(groups: Sequence[Group]) -> Group:
    return min(groups, key=lambda group: len(group.prompt_ids))
