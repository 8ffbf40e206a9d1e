"""What the updates of a step add up to, over micro-batches and ranks."""

import math

import torch
import torch.distributed as dist

from museg_ray.algo import loss
from museg_ray.config.learning import AlgoConfig
from museg_ray.learner.deepspeed_engine import learner_device
from museg_ray.metrics import names

_GAP_SUM, _GAP_COUNT = "gap_sum", "gap_count"
_SEQUENCES, _TOKENS = "sequences", "tokens"


class Tally:
    """Sums on this rank until the step's end, when they are added over the ranks: one collective a step."""

    def __init__(self, algo: AlgoConfig) -> None:
        self._algo = algo
        zero = torch.zeros((), dtype=torch.float64, device=learner_device())
        keys = (loss.WEIGHT, loss.KL, loss.CLIPPED, loss.ENTROPY, loss.CORRECTION, loss.CORRECTED)
        # All keys from the start: the ranks' sums are added by their place in a vector.
        self._sums = {key: zero for key in (*keys, _GAP_SUM, _GAP_COUNT, _SEQUENCES, _TOKENS)}
        self._gap_max = zero
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._num_skipped = 0

    def add_loss(self, stats: dict[str, torch.Tensor]) -> None:
        """The statistics that `grpo_loss` gives."""
        for key, value in stats.items():
            self._sums[key] = self._sums[key] + value.double()

    def add_pass(self, num_tokens: int) -> None:
        """A packed sequence of an update pass."""
        self._sums[_SEQUENCES] = self._sums[_SEQUENCES] + 1
        self._sums[_TOKENS] = self._sums[_TOKENS] + num_tokens

    def add_gaps(self, gaps: torch.Tensor) -> None:
        """[K] learner minus rollout log-probs."""
        sizes = gaps[gaps.isfinite()].abs().double()
        self._sums[_GAP_SUM] = self._sums[_GAP_SUM] + sizes.sum()
        self._sums[_GAP_COUNT] = self._sums[_GAP_COUNT] + len(sizes)
        if len(sizes):
            self._gap_max = torch.maximum(self._gap_max, sizes.max())

    def add_update(self, update_loss: float, norm: float | None) -> None:
        """An update with the loss and the gradient norm of all ranks; None: it was left out."""
        if norm is None:
            self._num_skipped += 1
        else:
            self._losses.append(update_loss)
            self._norms.append(norm)

    def metrics(self) -> dict[str, float]:
        """The `learner/*` and `parity/*` metrics over all ranks; those of losses only where an update was made, and
        gaps over the tokens that have a finite one: the others leave their update out, and are counted by that."""
        sums, gap_max = self._reduced()
        metrics = _parity(sums, gap_max)
        metrics[names.LEARNER_SKIPPED] = float(self._num_skipped)
        metrics[names.LEARNER_UPDATES] = float(len(self._losses))
        metrics[names.LEARNER_SEQUENCES] = sums[_SEQUENCES]
        metrics[names.LEARNER_TOKENS] = sums[_TOKENS]
        if self._losses:
            metrics[names.LEARNER_LOSS] = math.fsum(self._losses) / len(self._losses)
            metrics[names.LEARNER_GRAD_NORM] = math.fsum(self._norms) / len(self._norms)
        means = {name: sums[key] / max(sums[loss.WEIGHT], 1e-30) for name, key in self._shown().items()}
        return metrics | {name: mean for name, mean in means.items() if math.isfinite(mean)}

    def _shown(self) -> dict[str, str]:
        """Metric -> sum, of what this configuration's loss has."""
        shown = {names.LEARNER_CLIPPED_SHARE: loss.CLIPPED}
        if self._algo.beta:
            shown[names.LEARNER_KL] = loss.KL
        if self._algo.entropy_bonus:
            shown[names.LEARNER_ENTROPY] = loss.ENTROPY
        if self._algo.correction != "none":
            shown |= {names.LEARNER_CORRECTION: loss.CORRECTION, names.LEARNER_CORRECTED_SHARE: loss.CORRECTED}
        return shown

    def _reduced(self) -> tuple[dict[str, float], float]:
        """The sums, and the largest gap, of all ranks."""
        vector, largest = torch.stack(list(self._sums.values())), self._gap_max.clone()
        dist.all_reduce(vector)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return dict(zip(self._sums, vector.tolist(), strict=True)), largest.item()


def _parity(sums: dict[str, float], gap_max: float) -> dict[str, float]:
    """Nothing where no token could be compared."""
    if not sums[_GAP_COUNT]:
        return {}
    return {names.PARITY_GAP_MEAN: sums[_GAP_SUM] / sums[_GAP_COUNT], names.PARITY_GAP_MAX: gap_max}
