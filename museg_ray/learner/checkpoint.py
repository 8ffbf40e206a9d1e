"""The learner's part of a checkpoint: whole tensors by name, whatever the ZeRO stage and the number of ranks.

`model/shards.py` has the files. Kinds of tensors:

    weights/NAME                     every trained parameter, float32
    exp_avg/NAME, exp_avg_sq/NAME    AdamW's moments of it, float32, once there was an update
    reference/NAME                   the KL reference in its own dtype, once it is no longer the model folder's

Only what training changes is in it; the rest is the model folder's. DeepSpeed's own checkpoints hold flat partitions
that fit one stage and one number of ranks.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from museg_ray.errors import CheckpointError, LearnerError
from museg_ray.files import described
from museg_ray.learner.deepspeed_engine import adamw_of
from museg_ray.learner.rank import Rank
from museg_ray.learner.weights import module_weights
from museg_ray.model.policy import PolicyModel
from museg_ray.model.shards import FACTS_FILE, FORMAT, Shards, random_name, shard_name

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One rank's share of the state, in memory of its own: training may go on while it is written."""

    rank: Rank
    tensors: dict[str, torch.Tensor]
    random_state: dict[str, torch.Tensor]
    facts: dict[str, Any]

    @classmethod
    def take(
        cls, engine: deepspeed.DeepSpeedEngine, reference: nn.Module | None, rank: Rank, num_skipped: int
    ) -> "Snapshot":
        """All ranks together: gathering a parameter takes all, and each keeps about as many bytes of them.

        Args:
            reference: where it is not the model folder's.
            num_skipped: updates in a row that were skipped.
        """
        num_updates = _num_updates(engine)
        if num_updates:
            _link_moments(engine)
        weights = module_weights(reference, is_wanted=True) if reference is not None else ()
        of_reference = ((f"reference/{name}", weight) for name, weight in weights)
        tensors = _share(chain(_full_state(engine, has_moments=num_updates > 0), of_reference), rank)
        facts = {
            "format": FORMAT,
            "num_shards": rank.count,
            "num_updates": num_updates,
            "num_skipped": num_skipped,
            "has_reference": reference is not None,
        }
        return cls(rank, tensors, _random_state(), facts)

    def write(self, folder: Path) -> dict[str, dict[str, object]]:
        """Write this rank's files into a folder that is there; `files.described` of its shard, by name: all ranks hash
        at once, each what its machine still has in memory, and not the driver what comes from all of them.

        Raises:
            LearnerError: it is not there on this machine, or has no room.
        """
        shard = folder / shard_name(self.rank.index, self.rank.count)
        try:
            save_file(self.tensors, shard)
            torch.save(self.random_state, folder / random_name(self.rank.index))
            if self.rank.index == 0:
                (folder / FACTS_FILE).write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")
            return {shard.name: described(shard)}
        except (OSError, RuntimeError, SafetensorError) as error:
            raise LearnerError(
                f"Learner rank {self.rank.index} could not write into {folder}: {error}. run.dir must lie on storage "
                "with room that the machines of all learner ranks see."
            ) from error


def _share(tensors: Iterable[tuple[str, torch.Tensor]], rank: Rank) -> dict[str, torch.Tensor]:
    """What one rank keeps of tensors that all ranks are offered in the same order: the next one goes to the rank that
    has the fewest bytes."""
    sizes_bytes, kept = [0] * rank.count, dict[str, torch.Tensor]()
    for name, tensor in tensors:
        owner = sizes_bytes.index(min(sizes_bytes))
        sizes_bytes[owner] += tensor.numel() * tensor.element_size()
        if owner == rank.index:
            kept[name] = tensor.detach().to("cpu", copy=True)
    return kept


class LearnerState:
    """A checkpoint's `learner` folder, opened to be read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: it cannot be read.
        """
        self._shards = Shards(folder)
        self.has_reference = bool(self._shards.facts["has_reference"])
        """It holds a KL reference of its own."""
        self.num_skipped = int(self._shards.facts["num_skipped"])
        """Updates in a row that were skipped."""

    def load_weights(self, policy: PolicyModel) -> None:
        """Into a policy whose trained parameters are those that require gradients, before DeepSpeed has it.

        Raises:
            CheckpointError: what is trained now is not what the checkpoint holds.
        """
        self._load("weights", {name: p for name, p in policy.model.named_parameters() if p.requires_grad})

    def load_reference(self, reference: PolicyModel) -> None:
        """Likewise into the reference's policy, where `has_reference`."""
        self._load("reference", dict(reference.model.named_parameters()))

    def restore_optimizer(self, engine: deepspeed.DeepSpeedEngine, rank: Rank) -> None:
        """Moments, the number of updates that bias correction rests on, float32 master weights; and the random state.

        A rank that the checkpoint does not know, since fewer ranks wrote it, keeps the random state of its start.
        """
        num_updates = int(self._shards.facts["num_updates"])
        if num_updates:
            _make_moments(engine, num_updates)
        for name, parameter in _trained(engine):
            if engine.zero_optimization_stage() > 0:
                safe_set_full_fp32_param(parameter, self._shards.tensor("weights", name).to(parameter.device))
            for moment in MOMENTS if num_updates else ():
                _set_moment(engine, parameter, moment, self._shards.tensor(moment, name))
        if rank.index < int(self._shards.facts["num_shards"]):
            _set_random_state(torch.load(self._shards.folder / random_name(rank.index), weights_only=True))

    def _load(self, kind: str, parameters: dict[str, nn.Parameter]) -> None:
        held = set(self._shards.names(kind))
        differences = [
            *(f"{name} is trained now and not in it" for name in sorted(parameters.keys() - held)),
            *(f"{name} is in it and not trained now" for name in sorted(held - parameters.keys())),
            *(
                f"{name} is {list(self._shards.shape(kind, name))} in it and {list(parameters[name].shape)} now"
                for name in sorted(held & parameters.keys())
                if self._shards.shape(kind, name) != tuple(parameters[name].shape)
            ),
        ]
        if differences:
            raise CheckpointError(
                f"The checkpoint {self._shards.folder} does not fit the run: {differences[0]} ({len(differences)} "
                "such). Resume with the model.path, learner.lora, learner.train_vision and learner.train_merger it had."
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self._shards.tensor(kind, name))


def _trained(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in engine.module.model.named_parameters() if p.requires_grad)


def _num_updates(engine: deepspeed.DeepSpeedEngine) -> int:
    steps = {int(state["step"]) for state in adamw_of(engine).state.values() if "step" in state}
    assert len(steps) <= 1, f"AdamW counts {steps} updates for different parameters"
    return steps.pop() if steps else 0


def _full_state(engine: deepspeed.DeepSpeedEngine, has_moments: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole float32 tensors of every trained parameter, as KIND/NAME."""
    is_whole = engine.zero_optimization_stage() == 0
    for name, parameter in _trained(engine):
        yield f"weights/{name}", parameter if is_whole else safe_get_full_fp32_param(parameter)
        for moment in MOMENTS if has_moments else ():
            yield f"{moment}/{name}", _moment(engine, parameter, moment)


def _moment(engine: deepspeed.DeepSpeedEngine, parameter: nn.Parameter, moment: str) -> torch.Tensor:
    if engine.zero_optimization_stage() == 0:
        return adamw_of(engine).state[parameter][moment]
    return safe_get_full_optimizer_state(parameter, moment)


def _make_moments(engine: deepspeed.DeepSpeedEngine, num_updates: int) -> None:
    """The state that AdamW makes in its first step, which has not been."""
    adamw = adamw_of(engine)
    is_fused = bool(adamw.defaults["fused"])
    for parameter in _optimized(engine):
        step = torch.tensor(float(num_updates), device=parameter.device if is_fused else "cpu")
        zeros = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
        adamw.state[parameter] = {"step": step, **zeros}
    _link_moments(engine)


def _optimized(engine: deepspeed.DeepSpeedEngine) -> list[torch.Tensor]:
    """What AdamW steps on: the parameters at ZeRO 0, this rank's flat float32 partitions above."""
    if engine.zero_optimization_stage() == 3:  # where they are in AdamW's groups during a step only
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [parameter for group in adamw_of(engine).param_groups for parameter in group["params"]]


def _link_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let DeepSpeed find the moments of each parameter. At ZeRO 1 and 2 it does so itself within its first step, after
    the first of AdamW's groups: the moments of the others are not made then, and stay unknown (0.19.8)."""
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_moment(engine: deepspeed.DeepSpeedEngine, parameter: nn.Parameter, moment: str, value: torch.Tensor) -> None:
    if engine.zero_optimization_stage() == 0:
        adamw_of(engine).state[parameter][moment].copy_(value)
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), moment)


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
