"""The configuration of learning: the loss, the learner's ranks and their memory, checkpoints."""

from dataclasses import dataclass, field
from typing import Annotated

from museg_ray.config.rules import Amount, Count, CountFrom1, Positive, Share, number_from, one_of


@dataclass
class AlgoConfig:
    """The loss. The defaults are the paper's: one update a rollout, per-response mean, k3. See docs/learner.md."""

    beta: Amount = 0.04
    """Weight of the KL term against the reference policy; 0 drops the reference model."""
    kl_estimator: Annotated[str, one_of("k1", "k2", "k3")] = "k3"
    """`k1` (log-ratio; its mean gradient is 0, so it holds nothing in place), `k2` (half its square) or `k3` (never
    negative, unbiased; GRPO)."""
    advantage: Annotated[str, one_of("grpo", "rloo")] = "grpo"
    """A response's reward minus the mean of its group (`grpo`), or of the others in it (`rloo`: leave one out, wants
    scale_advantages false)."""
    scale_advantages: bool = True
    """Divide advantages by the group's standard deviation (GRPO); False keeps only the mean subtracted (Dr. GRPO)."""
    loss_mean: Annotated[str, one_of("sequence", "token", "constant")] = "sequence"
    """What weighs the same: each `sequence` (GRPO), each `token` of the update (DAPO), or each token by 1 over the
    `constant` rollout.max_completion_tokens (Dr. GRPO)."""
    surrogate: Annotated[str, one_of("ppo", "gspo", "cispo")] = "ppo"
    """What of the ratio of new to old probability is clipped, from the second update of a rollout on: each token's
    objective (`ppo`, as in GRPO), that of a whole response with the geometric mean of its tokens' ratios (`gspo`, wants
    loss_mean `sequence` and much smaller clips, 0.0003 and 0.0004 there), or each token's weight alone, so that none
    loses its gradient (`cispo`)."""
    clip_low: Share = 0.2
    """The ratio of new to old probability stops pushing below 1 - clip_low. Acts from the second update of a rollout
    on."""
    clip_high: Amount = 0.2
    """... and above 1 + clip_high; more than clip_low is DAPO's clip-higher (0.28 there)."""
    dual_clip: float = 0.0
    """Bound, above 1, on the ratio where the advantage is negative (dual-clip PPO; not with `cispo`); 0: none."""
    entropy_bonus: Amount = 0.0
    """Weight of the token entropy that the loss rewards."""
    correction: Annotated[str, one_of("none", "truncate", "mask")] = "none"
    """Importance weights learner / rollout for engines that compute otherwise, or are older: `none`, `truncate` (to at
    most `correction_limit`) or `mask` (tokens outside 1 / limit .. limit are left out)."""
    correction_level: Annotated[str, one_of("token", "sequence", "geometric")] = "token"
    """Of what the importance weight is: each `token`, the response as a whole (`sequence`: the product over its
    tokens), or the `geometric` mean over them. With the last two a response is truncated or masked as a whole."""
    correction_limit: Annotated[float, number_from(1)] = 2.0
    """At least 1: no importance weight is above it, however old the weights that sampled the token. For `geometric`
    close to 1: the means of long responses are."""
    num_epochs: CountFrom1 = 1
    """Passes over each step's groups."""
    num_minibatches: CountFrom1 = 1
    """Optimiser updates a pass; each takes its share of the step's groups."""


@dataclass
class LoraConfig:
    """Low-rank adapters on the language model's linear layers in place of training all weights (arXiv 2106.09685)."""

    rank: Count = 0
    """0: no adapters, all weights are trained."""
    alpha: Positive = 16.0
    """The adapter's output is scaled by alpha / rank."""


@dataclass
class LearnerConfig:
    num_ranks: CountFrom1 = 1
    """Learner actors, each one DeepSpeed rank; on one machine or several."""
    num_cpus: Amount = 1.0
    """CPUs each rank reserves in Ray."""
    num_gpus: float = 0.0
    """GPUs each rank reserves: 1, or 0 to learn on a CPU."""
    num_threads: Count = 0
    """Torch threads of a rank on a CPU; 0: torch's own choice."""
    zero_stage: Annotated[int, one_of(0, 1, 2, 3)] = 2
    """DeepSpeed ZeRO stage: 0 every rank holds all, 1 optimiser state, 2 also gradients, 3 also weights are sharded."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in the CPU's memory (ZeRO 1 to 3)."""
    offload_weights: bool = False
    """Keep weights in the CPU's memory while no layer needs them (ZeRO 3)."""
    reduce_in_float32: bool = False
    """Add up the ranks' gradients in float32, with twice the bytes between them. Else they cross, and each sum over the
    ranks is rounded, in `model.dtype`; what is added up over packed sequences is float32 in any case (ZeRO 1 to 3)."""
    reference: Annotated[str, one_of("device", "sharded", "cpu", "lora_off")] = "device"
    """Where the KL reference lies: a copy on each rank's `device`, `sharded` over the ranks (ZeRO 3), sharded in the
    `cpu` memory, or no copy at all: the policy with its adapters off (`lora_off`)."""
    attention: Annotated[str, one_of("split", "flex", "dense")] = "split"
    """`split`: prompt and completions attend in two calls of SDPA, without a mask over the whole; `flex`: PyTorch's
    FlexAttention, compiled, for GPUs; `dense`: SDPA with the whole mask, to compare with."""
    pack_tokens: int = 16384
    """Most tokens, video tokens included, of one packed sequence. A group that is longer is split over several, which
    each repeat its prompt."""
    chunk_tokens: CountFrom1 = 1024
    """Completion tokens whose logits are in memory at once."""
    liger: bool = False
    """Use the fused kernels of liger-kernel (GPU; to be installed beside)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    learning_rate: Amount = 1.5e-6
    vision_learning_rate: Annotated[float | None, number_from(0)] = None
    """Of the vision tower; null: learning_rate."""
    merger_learning_rate: Annotated[float | None, number_from(0)] = None
    """Of the layers between tower and language model; null: learning_rate."""
    schedule: Annotated[str, one_of("linear", "constant")] = "linear"
    """`linear` (to 0 over all steps, or over those up to the next phase with `fresh_schedule`) or `constant`."""
    warmup_steps: Count = 0
    weight_decay: Amount = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: Amount = 1.0
    gradient_checkpointing: bool = False
    train_vision: bool = True
    """False freezes the vision tower (MUSEG trains it): it then runs once a clip and update, and is sent nowhere."""
    train_merger: bool = True
    """False freezes the layers between tower and language model."""
    start_timeout_s: Positive = 1800.0
    """Ranks that do not hold the model by then are started anew."""
    step_timeout_s: Positive = 3600.0
    """A learner that has not done an update, or whatever else it is asked, by then is taken for lost: it starts again
    from the last checkpoint."""


@dataclass
class CheckpointConfig:
    """Whole states of a run, from which it goes on as if nothing had happened."""

    every_steps: Count = 50
    """Steps between checkpoints; the last step always has one. 0: only the last step."""
    keep_last: CountFrom1 = 2
    """The newest ones that are kept."""
    keep_best: Count = 1
    """The best ones kept besides, by the mean of `best_metric` over the steps since the checkpoint before."""
    best_metric: str = "reward/matching"
    """A metric that is better when larger."""
