"""The learner: one GRPO update of the policy from a step's scored groups."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import numpy as np
import torch

from museg_ray.algo.loss import grpo_loss
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import LearnerError
from museg_ray.learner.deepspeed_engine import learner_device, reset_optimizer, start_engine
from museg_ray.metrics import names
from museg_ray.model.packing import Pack, pack_group
from museg_ray.model.patchify import patchify, video_grid
from museg_ray.model.policy import PolicyModel
from museg_ray.model.positions import prompt_positions, seconds_per_grid
from museg_ray.model.qwen_vl import forbidden_token_ids, load_policy, load_tokenizer, load_vision_spec, save_policy
from museg_ray.types import ByteArray, Clip, ResponseGroup, ScoredGroup
from museg_ray.weights.blob import weights_to_blob


@dataclass(frozen=True, slots=True)
class _GroupResult:
    loss: float
    kl: float
    gaps: torch.Tensor  # [K] |rollout - learner log-prob| of the tokens in the loss


class Learner:
    """Holds the policy, its optimiser and the frozen KL reference. One rank; plain Python, no Ray.

    An error leaves the learner between two steps: it is then of no further use.
    """

    def __init__(self, config: Config, model_dir: Path) -> None:
        """Load the policy of `model_dir` and start DeepSpeed.

        Raises:
            ModelError: the folder cannot be used.
            ConfigError: settings that DeepSpeed cannot do.
        """
        self._config = config
        self._model_dir = model_dir
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._spec = load_vision_spec(model_dir)
        self._device = learner_device()
        policy = self._load(model_dir)
        policy.model.model.visual.requires_grad_(config.learner.train_vision)
        if config.learner.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._reference = self._load(model_dir) if config.algo.beta > 0 else None
        if self._reference is not None:
            self._reference.to(self._device).requires_grad_(False).eval()
        self._engine = start_engine(policy, config)
        self._engine.train()  # gradient checkpointing acts in training mode only; the model has no dropout

    def update(self, groups: Sequence[ScoredGroup], clips: Mapping[str, Clip]) -> dict[str, float]:
        """One optimiser step on the mean loss over `groups`.

        Args:
            groups: at least one; their rollouts came from the present weights.
            clips: by `clip_key`, the clip of every group.

        Returns:
            `learner/*` and `parity/*` metrics. The gaps compare log-probs before the update, over all tokens of the
            step but those that may not be sampled.

        Raises:
            LearnerError: loss, log-prob gap or gradient is not finite.
        """
        assert groups, "an update needs at least one group"
        results = [self._accumulate(scored, clips[scored.group.clip_key], len(groups)) for scored in groups]
        learning_rate = self._engine.get_lr()[0]
        grad_norm = self._step()
        gaps = torch.cat([result.gaps for result in results])
        return {
            names.LEARNER_LOSS: float(np.mean([result.loss for result in results])),
            names.LEARNER_KL: float(np.mean([result.kl for result in results])),
            names.LEARNER_GRAD_NORM: grad_norm,
            names.LEARNER_LEARNING_RATE: learning_rate,
            names.PARITY_GAP_MEAN: gaps.mean().item() if len(gaps) else 0.0,
            names.PARITY_GAP_MAX: gaps.max().item() if len(gaps) else 0.0,
        }

    def start_phase(self, phase: PhaseConfig) -> None:
        """Start anew what the phase wants fresh: `fresh_optimizer` and `fresh_reference`.

        The caller calls it exactly at the first step of the phase, before any update of that phase; the learner does
        not know where phases begin, and in the middle of one it would forget what the phase has gathered. The
        learning-rate schedule needs no call: it follows from the step.
        """
        if phase.fresh_optimizer:
            reset_optimizer(self._engine)
        if phase.fresh_reference:
            self._refresh_reference()

    def export_weights(self) -> ByteArray:
        """All weights under their Hugging Face names, tied ones once."""
        return weights_to_blob(self._weights())

    def export_model(self, out_dir: Path) -> None:
        """Write a Hugging Face folder of the policy."""
        save_policy(self._engine.module.model, self._model_dir, out_dir, dict(self._weights()))

    def save_checkpoint(self, out_dir: Path) -> None:
        """Write DeepSpeed's own checkpoint: weights, optimiser and schedule."""
        self._engine.save_checkpoint(str(out_dir))

    def close(self) -> None:
        """Let go of DeepSpeed's hooks and buffers."""
        self._engine.destroy()

    def _load(self, model_dir: Path) -> PolicyModel:
        model = load_policy(model_dir, self._dtype)
        forbidden = forbidden_token_ids(load_tokenizer(model_dir), model.config.text_config.vocab_size)
        return PolicyModel(model, forbidden, self._config.rollout.temperature)

    def _accumulate(self, scored: ScoredGroup, clip: Clip, num_groups: int) -> _GroupResult:
        """Add one group's share of the gradient."""
        group = scored.group
        inputs = self._inputs(group, clip)
        pack = inputs[0]
        logprobs = self._engine(*inputs)  # [N]
        reference_logprobs = None
        if self._reference is not None:
            with torch.no_grad():
                reference_logprobs = self._reference(*inputs)
        allowed = self._engine.module.is_allowed(pack.targets)  # [N]
        loss, stats = grpo_loss(
            logprobs=logprobs,
            old_logprobs=logprobs.detach(),
            reference_logprobs=reference_logprobs,
            advantages=torch.tensor(scored.advantages, device=self._device)[pack.response_index],
            response_index=pack.response_index,
            loss_mask=allowed,
            num_responses=pack.num_responses,
            beta=self._config.algo.beta,
        )
        rollout_logprobs = torch.from_numpy(np.concatenate([r.logprobs for r in group.responses]))  # [N]
        gaps = (logprobs.detach() - rollout_logprobs.to(self._device)).abs()[allowed]
        _check_finite(group, loss, gaps)
        # The step's gradient is the mean over groups, however many there are.
        self._engine.backward(loss / num_groups)
        return _GroupResult(loss.item(), stats.get("kl", 0.0), gaps)

    def _inputs(self, group: ResponseGroup, clip: Clip) -> tuple[Pack, torch.Tensor, tuple[int, int, int]]:
        """The arguments of `PolicyModel.forward`."""
        grid = video_grid(clip.frames, self._spec)
        interval_s = seconds_per_grid(clip.sample_fps, self._spec, self._dtype)
        positions = prompt_positions(group.prompt_ids, grid, interval_s, self._spec)
        pack = pack_group(group.prompt_ids, positions, [response.token_ids for response in group.responses])
        return pack.to(self._device), patchify(clip.frames, self._spec, self._device), grid

    def _step(self) -> float:
        """Apply the accumulated gradient; returns its norm before clipping.

        Raises:
            LearnerError: the gradient is not finite; most ZeRO stages would skip the update without a word.
        """
        # At stage 0 no optimiser of DeepSpeed's computes the norm; with one rank the local gradients are all there is.
        norm = self._gradient_norm() if self._engine.zero_optimization_stage() == 0 else None
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm()) if norm is None else norm
        if not math.isfinite(norm) or norm < 0 or not self._engine.was_step_applied():
            raise LearnerError(
                f"The gradient of update {self._engine.global_steps} is not finite (norm {norm}). "
                "Lower learner.learning_rate, or set model.dtype to float32."
            )
        return norm

    def _gradient_norm(self) -> float:
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).item()

    def _refresh_reference(self) -> None:
        """Take the present policy as the KL reference; does nothing without one."""
        if self._reference is not None:
            for name, tensor in self._weights():
                self._reference.model.get_parameter(name).copy_(tensor)

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Full weights by Hugging Face name, tied ones once, as copies on the CPU."""
        is_partitioned = self._engine.zero_optimization_partition_weights()
        for name, parameter in self._engine.module.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=is_partitioned):
                # A copy, since a gathered parameter is emptied when the block ends.
                copy = parameter.detach().to("cpu", copy=True)
            yield name, copy


def _check_finite(group: ResponseGroup, loss: torch.Tensor, gaps: torch.Tensor) -> None:
    for what, is_finite in (("loss", loss.isfinite().all()), ("log-prob gap", gaps.isfinite().all())):
        if not is_finite:
            raise LearnerError(
                f"The {what} of query {group.query.query_id} (weights {group.weight_version}) is not finite: "
                "the model diverged. Lower learner.learning_rate, or set model.dtype to float32."
            )
