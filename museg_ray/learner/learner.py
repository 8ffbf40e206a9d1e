"""The learner: GRPO updates of the policy from a step's scored groups.

groups ─▶ packed micro-batches of this rank ─▶ passes without gradient: frozen tower, reference, old policy
       ─▶ per update: forward, loss, backward of each micro-batch ─▶ reduce, clip, step
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch

from museg_ray.algo.loss import LossTokens, grpo_loss
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import LearnerError
from museg_ray.learner.batch import Batcher, MicroBatch
from museg_ray.learner.checkpoint import LearnerState, Snapshot
from museg_ray.learner.deepspeed_engine import (
    apply_gradients,
    learner_device,
    reset_optimizer,
    set_learning_rate,
    start_engine,
    start_reference,
)
from museg_ray.learner.process_group import join_process_group
from museg_ray.learner.rank import Rank
from museg_ray.learner.schedule import learning_rate_factor, schedule_spans
from museg_ray.learner.tally import Tally
from museg_ray.learner.weights import WeightWriter, copy_weights, policy_weights
from museg_ray.metrics import names
from museg_ray.model.liger import use_liger
from museg_ray.model.lora import adapters_off, add_adapters
from museg_ray.model.policy import PolicyModel
from museg_ray.model.qwen_vl import forbidden_token_ids, load_policy, load_tokenizer, load_vision_spec, save_policy
from museg_ray.types import Clip, Group
from museg_ray.weights.channel import WritePlace
from museg_ray.weights.layout import Layout, Part
from museg_ray.weights.spans import Span

Logprobs = tuple[torch.Tensor, torch.Tensor]
"""Log-probs and entropies, as `PolicyModel` gives them."""
MAX_SKIPPED_UPDATES = 3
"""So many updates in a row that are not finite stop the run."""


class Learner:
    """Holds the policy, its optimiser and the frozen KL reference. Plain Python, no Ray.

    One of `rank.count` ranks that all call the same methods in the same order with the same arguments; each returns
    the same numbers. An error leaves the learner between two updates: it is then of no further use.
    """

    def __init__(
        self, config: Config, model_dir: Path, rank: Rank | None = None, checkpoint: Path | None = None
    ) -> None:
        """Load the policy of `model_dir`, or that of a checkpoint's `learner` folder, and start DeepSpeed.

        Raises:
            ModelError: the folder cannot be used.
            ConfigError: settings that DeepSpeed cannot do.
            CheckpointError: the checkpoint cannot be read, or does not fit the model.
        """
        self._config = config
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._model_dir = model_dir
        self._rank = rank or Rank()
        join_process_group(self._rank, config.learner.step_timeout_s)
        torch.manual_seed(config.run.seed)
        state = LearnerState(checkpoint) if checkpoint is not None else None
        self._reference = self._start_reference(state)  # first: sharded, it leaves its memory to the policy
        policy = self._start_policy(state)
        self._engine = start_engine(policy, config)
        self._engine.train()  # gradient checkpointing acts in training mode only; the model has no dropout
        self._num_skipped = 0  # in a row
        self._version = 0  # of the weights, as `write_weights` was told; 0: those that it started with
        self._has_reference_of_its_own = state is not None and state.has_reference
        if state is not None:
            self._num_skipped = state.num_skipped
            state.restore_optimizer(self._engine, self._rank)
        learner = config.learner
        trained = {Part.LANGUAGE: True, Part.TOWER: learner.train_vision, Part.MERGER: learner.train_merger}
        frozen = {part for part in Part if not trained[part]}
        self._writer = WeightWriter(self._engine, learner, self._rank, frozen)
        self._batcher = Batcher(config, load_vision_spec(model_dir), self._rank, learner_device(), policy.is_allowed)

    def clip_keys(self, groups: Sequence[Group]) -> set[str]:
        """The clips that this rank needs for `update` of `groups`."""
        return set().union(*(self._batcher.clip_keys(share) for share in self._shares(groups)))

    def update(self, groups: Sequence[Group], clips: Mapping[str, Clip], step: int) -> dict[str, float]:
        """The optimiser updates of one step: one by default, else `algo.num_epochs` passes of `algo.num_minibatches`.

        An update whose loss or gradient is not finite is left out on all ranks, and counted.

        Args:
            groups: at least one, of all ranks together.
            clips: by `clip_key`, at least those of `clip_keys`.
            step: global, from 1. The learning rate follows from it.

        Returns:
            `learner/*` and `parity/*` metrics, over all ranks. The gaps compare log-probs before the first update, over
            the tokens of the responses that were sampled from the learner's own weights throughout, but for those that
            may not be sampled; they are absent where there is none. Loss and gradient norm are those of the updates
            that were made, and absent when none was.

        Raises:
            LearnerError: the third update in a row that is not finite.
        """
        assert groups, "an update needs at least one group"
        algo = self._config.algo
        learning_rate = self._set_learning_rate(step)
        updates = [self._batcher.micro_batches(share, clips, self._version) for share in self._shares(groups)]
        for batch in chain(*updates):
            self._prepare(batch, with_old=algo.num_epochs * len(updates) > 1)
        tally = Tally(algo)
        for epoch in range(algo.num_epochs):
            for batches in updates:
                losses = [self._accumulate(batch, tally, is_first=epoch == 0) for batch in batches]
                self._end_update(step, torch.stack(losses).sum(), tally)
        return tally.metrics() | {names.LEARNER_LEARNING_RATE: learning_rate}

    def gaps(self, group: Group, clips: Mapping[str, Clip]) -> list[float]:
        """[G] mean |learner - rollout log-prob| of each response of a group that was sampled from the present weights,
        without an update; not finite where a log-prob is not."""
        count = len(group.responses)
        numbered = replace(group, advantages=np.arange(count, dtype=np.float32))  # whose each token of a batch is
        sums = torch.zeros(2, count, dtype=torch.float64, device=learner_device())
        for batch in self._batcher.micro_batches([numbered], clips, self._version):
            gaps = (self._fixed_logprobs(self._engine, batch) - batch.rollout_logprobs).abs()
            sums.index_add_(1, batch.advantages.long(), torch.stack([gaps, torch.ones_like(gaps)]).double())
        torch.distributed.all_reduce(sums)
        means: list[float] = (sums[0] / sums[1].clamp(min=1.0)).tolist()
        return means

    def start_phase(self, phase: PhaseConfig) -> None:
        """Start anew what the phase wants fresh: `fresh_optimizer` and `fresh_reference`.

        The caller calls it exactly at the first step of the phase, before any update of that phase; the learner does
        not know where phases begin, and in the middle of one it would forget what the phase has gathered. The
        learning-rate schedule needs no call: it follows from the step.
        """
        if phase.fresh_optimizer:
            reset_optimizer(self._engine)
        if phase.fresh_reference and self._reference is not None:
            copy_weights(policy_weights(self._engine, self._config.learner), self._reference)
            self._has_reference_of_its_own = True

    def write_weights(self, version: int, place: WritePlace) -> list[Span]:
        """Write what this rank has of the weights that training changes into its machine's file.

        Args:
            version: what they are called from now on; groups that were sampled from them are known by it.
            place: a file of the layout of `weight_layout`.

        Returns:
            The bytes of the file that it wrote.
        """
        self._version = version
        return self._writer.write(place)

    @property
    def weight_layout(self) -> Layout:
        """Of the weights that training changes, under their Hugging Face names, tied ones once; the same on all
        ranks."""
        return self._writer.layout

    def export_model(self, out_dir: Path) -> None:
        """Rank 0 writes a Hugging Face folder of the policy."""
        weights = dict(policy_weights(self._engine, self._config.learner, is_wanted=self._rank.index == 0))
        if self._rank.index == 0:
            save_policy(load_policy(self._model_dir, self._dtype), self._model_dir, out_dir, weights)

    def snapshot(self) -> Snapshot:
        """A copy of this rank's share of all that training has changed, for a checkpoint."""
        reference = self._reference if self._has_reference_of_its_own else None
        return Snapshot.take(self._engine, reference, self._rank, self._num_skipped)

    def _start_policy(self, state: LearnerState | None) -> PolicyModel:
        learner = self._config.learner
        policy = self._load()
        if learner.liger:
            use_liger(policy.model)
        if learner.lora.rank:
            add_adapters(policy.model, learner.lora)
        policy.model.model.visual.requires_grad_(learner.train_vision)
        for merger in policy.family.mergers(policy.model):
            merger.requires_grad_(learner.train_merger)
        if learner.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        if state is not None:
            state.load_weights(policy)
        return policy

    def _start_reference(self, state: LearnerState | None) -> torch.nn.Module | None:
        """None where no copy is needed: without a KL term, or where it is the policy without its adapters."""
        if self._config.algo.beta == 0 or self._config.learner.reference == "lora_off":
            return None
        reference = self._load()
        if state is not None and state.has_reference:
            state.load_reference(reference)
        return start_reference(reference, self._config)

    def _load(self) -> PolicyModel:
        learner = self._config.learner
        model = load_policy(self._model_dir, self._dtype)
        forbidden = forbidden_token_ids(load_tokenizer(self._model_dir), model.config.text_config.vocab_size)
        temperature = self._config.rollout.temperature
        return PolicyModel(model, forbidden, temperature, learner.attention, learner.chunk_tokens)

    def _shares(self, groups: Sequence[Group]) -> list[Sequence[Group]]:
        """The groups of each update of a pass: as even as can be, and none without a group."""
        count = min(self._config.algo.num_minibatches, len(groups))
        ends = [len(groups) * index // count for index in range(count + 1)]
        return [groups[start:end] for start, end in pairwise(ends)]

    def _set_learning_rate(self, step: int) -> float:
        """Of the language model's weights; the other rates have the same factor."""
        train, learner = self._config.train, self._config.learner
        spans = schedule_spans(train.phases)
        factor = learning_rate_factor(step - 1, spans, learner.warmup_steps, learner.schedule)
        set_learning_rate(self._engine, factor)
        return learner.learning_rate * factor

    def _prepare(self, batch: MicroBatch, with_old: bool) -> None:
        """What stays the same over all updates of the step."""
        if not self._config.learner.train_vision:
            batch.states = self._engine.module.tower(self._batcher.videos(batch))
        if self._reference is not None:
            batch.reference_logprobs = self._fixed_logprobs(self._reference, batch)
        elif self._config.algo.beta > 0:
            with adapters_off(self._engine.module.model):
                batch.reference_logprobs = self._fixed_logprobs(self._engine, batch)
        if with_old:
            batch.old_logprobs = self._fixed_logprobs(self._engine, batch)

    def _fixed_logprobs(self, policy: Callable[..., Logprobs], batch: MicroBatch) -> torch.Tensor:
        """[K] without gradient."""
        with torch.no_grad():
            logprobs, _ = policy(batch.pack, self._batcher.videos(batch), num_chunks=batch.num_chunks)
        return logprobs[batch.kept]

    def _accumulate(self, batch: MicroBatch, tally: Tally, is_first: bool) -> torch.Tensor:
        """Add the gradient of one micro-batch; its share of the loss.

        Args:
            is_first: of the step's passes over this micro-batch: the one that the rollout is compared with.
        """
        algo = self._config.algo
        videos, with_entropy = self._batcher.videos(batch), algo.entropy_bonus > 0
        logprobs, entropies = self._engine(batch.pack, videos, with_entropy, batch.num_chunks)
        logprobs = logprobs[batch.kept]  # dropped tokens leave the graph; 0 * inf would be NaN
        old_logprobs = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        tokens = LossTokens(
            logprobs=logprobs,
            old_logprobs=old_logprobs,
            rollout_logprobs=batch.rollout_logprobs,
            reference_logprobs=batch.reference_logprobs,
            entropies=entropies[batch.kept] if with_entropy else None,
            advantages=batch.advantages,
            weights=batch.weights,
            responses=batch.responses,
        )
        loss, stats = grpo_loss(tokens, algo)
        if not loss.isfinite():
            # So that its gradient is not finite either: that is what all ranks see, and leave the update out for.
            loss = loss * torch.nan
        self._engine.backward(loss * self._rank.count)  # the ranks' gradients are averaged
        tally.add_loss(stats)
        if not batch.is_filler:
            tally.add_pass(len(batch.pack.input_ids))
        if is_first:
            tally.add_gaps((old_logprobs - batch.rollout_logprobs)[batch.is_current])
        return loss.detach()

    def _end_update(self, step: int, loss: torch.Tensor, tally: Tally) -> None:
        """Apply the accumulated gradient, or leave it out.

        Invariant: an update that is not finite changes neither weights nor moments, on any rank: a single NaN in them
        would be in every later update.
        """
        norm = apply_gradients(self._engine, self._config.learner.max_grad_norm)
        torch.distributed.all_reduce(loss)
        tally.add_update(loss.item(), norm)
        self._num_skipped = 0 if norm is not None else self._num_skipped + 1
        if self._num_skipped == MAX_SKIPPED_UPDATES:
            raise LearnerError(
                f"Loss or gradient of the last {MAX_SKIPPED_UPDATES} updates, up to step {step}, was not finite: the "
                "model diverged. Lower learner.learning_rate, or set model.dtype to float32."
            )
