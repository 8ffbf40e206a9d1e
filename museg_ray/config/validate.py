"""Checks of a configuration's values and of what they must be to one another."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.util import find_spec

from museg_ray.config.learning import AlgoConfig
from museg_ray.config.rules import check_fields
from museg_ray.config.schema import Config, DataConfig, RolloutConfig
from museg_ray.errors import ConfigError


def source_weight_faults(weights: Mapping[str, float]) -> Iterator[str]:
    """What can be known of `data.source_weights` without the queries: weights that are negative or not finite; or all
    are 0."""
    for source, weight in weights.items():
        if not 0.0 <= weight < math.inf:
            yield f"data.source_weights[{source!r}] is {weight}; it must be a number of at least 0 (0: not drawn)."
    if weights and not any(weights.values()):
        yield "data.source_weights are all 0: no query is left; leave it empty to draw from all sources."


def _tree_faults(config: Config) -> Iterator[str]:
    """What is wrong with values beyond what their types say; the first one is told, and no other looked for."""
    answer, limit = config.rollout.max_completion_tokens, config.model.max_tokens
    temperature = config.rollout.temperature
    if config.video.decoder == "decord" and find_spec("decord") is None:
        yield (
            "video.decoder is 'decord', and that package is not installed; install decord==0.6.0, or set "
            "video.decoder=pyav."
        )
    if not 0.0 < temperature <= 2.0:
        yield (
            f"rollout.temperature is {temperature}; it must be above 0, since groups need varied responses, and at "
            "most 2, which is vLLM's bound."
        )
    if answer >= limit:
        yield f"rollout.max_completion_tokens ({answer}) leaves no room for the prompt in model.max_tokens ({limit})."
    yield from _phase_faults(config)
    yield from _data_faults(config.data)
    yield from _video_faults(config)
    yield from _reward_faults(config)
    yield from _algo_faults(config.algo, config.train.prompts_per_step)
    yield from _level_faults(config.algo)
    yield from _autoscale_faults(config.rollout)
    yield from _staleness_faults(config)
    yield from _learner_faults(config)
    if config.learner.reference == "lora_off":
        yield from _lora_faults(config)


def _phase_faults(config: Config) -> Iterator[str]:
    if not config.train.phases:
        yield "train.phases is empty; a run needs at least one phase with steps."
    if config.total_steps < 1:
        yield "The phases of train.phases have 0 steps together; a run needs at least one."
    names = [phase.name for phase in config.train.phases]
    for index, phase in enumerate(config.train.phases):
        where = f"train.phases[{index}]"
        if "{question}" not in phase.prompt:
            yield f"{where}.prompt does not contain {{question}}: {phase.prompt!r}"
        if not any(getattr(phase.weights, part.name) for part in fields(phase.weights)):
            yield f"{where}.weights are all 0: no response would be better than another."
        if names.count(phase.name) > 1:  # metrics, pictures and alarms tell phases apart by name
            yield f"{where}.name {phase.name!r} is not its alone."


def _data_faults(data: DataConfig) -> Iterator[str]:
    yield from source_weight_faults(data.source_weights)
    is_path = "." in data.curriculum and all(part.isidentifier() for part in data.curriculum.split("."))
    if data.curriculum and not is_path:
        yield f"data.curriculum is {data.curriculum!r}; it must be an import path, package.module.function, or empty."


def _video_faults(config: Config) -> Iterator[str]:
    video = config.video
    least, most = video.min_pixels, video.max_pixels
    if not 0 < least <= most:
        yield f"video.min_pixels ({least}) must be above 0 and at most video.max_pixels ({most})."
    if not video.store_dir:
        yield "video.store_dir is empty; set it to the folder of prepared clips."
    clip_gib = 6 * video.total_pixels / 1024**3  # 3 bytes a pixel, and the budget counts frame pairs
    if video.steps_ahead and video.ahead_gib < clip_gib:
        yield (
            f"video.ahead_gib is {video.ahead_gib:g}, less than one clip ({clip_gib:.3f} GiB at video.total_pixels "
            f"{video.total_pixels}): nothing could be prepared ahead. Raise it, or set video.steps_ahead=0."
        )
    least_gib = video.ahead_gib + config.train.prompts_per_step * clip_gib
    if video.store_gib < least_gib:
        yield (
            f"video.store_gib is {video.store_gib:g}, less than a step's clips and those prepared ahead: "
            f"{config.train.prompts_per_step} prompts x {clip_gib:.3f} GiB + video.ahead_gib {video.ahead_gib:g} = "
            f"{least_gib:.2f} GiB. They would drive one another out."
        )


def _reward_faults(config: Config) -> Iterator[str]:
    rewards, brevity = config.rewards, config.rewards.brevity
    timeout_s = rewards.response_timeout_s
    if not 0.01 <= timeout_s <= 86_400.0:
        yield f"rewards.response_timeout_s is {timeout_s:g}; it must lie between 0.01 and 86400 (a day)."
    if not 0 <= brevity.free_chars < brevity.max_chars:
        has = f"{brevity.free_chars} and {brevity.max_chars}"
        yield f"rewards.brevity needs 0 <= free_chars < max_chars; it has {has}."
    is_weighed = any(phase.weights.custom for phase in config.train.phases)
    if is_weighed and not rewards.custom:
        yield "A phase weighs the reward `custom`, but rewards.custom is empty; set it to an import path."
    if rewards.custom and not is_weighed:
        yield f"rewards.custom is {rewards.custom!r}, but no phase weighs it; set weights.custom in train.phases."


def _algo_faults(algo: AlgoConfig, prompts_per_step: int) -> Iterator[str]:
    if algo.dual_clip != 0.0 and not 1.0 < algo.dual_clip < math.inf:
        yield f"algo.dual_clip is {algo.dual_clip:g}; it must be above 1 (a bound on the ratio), or 0 for none."
    if algo.num_minibatches > prompts_per_step:
        yield (
            f"algo.num_minibatches is {algo.num_minibatches}, more than train.prompts_per_step ({prompts_per_step}): "
            "each update needs a group."
        )
    if algo.advantage == "rloo" and algo.scale_advantages:
        yield (
            "algo.advantage is 'rloo', which has no division by the standard deviation; set "
            "algo.scale_advantages=false."
        )
    if algo.surrogate == "cispo" and algo.dual_clip != 0.0:
        yield (
            "algo.surrogate is 'cispo', which bounds the ratio by algo.clip_high for every token; set algo.dual_clip=0."
        )


def _level_faults(algo: AlgoConfig) -> Iterator[str]:
    """What goes by response and what by token."""
    if algo.surrogate == "gspo" and algo.loss_mean != "sequence":
        yield (
            f"algo.surrogate is 'gspo', a loss of whole responses that weigh the same; algo.loss_mean is "
            f"{algo.loss_mean!r}. Set it to 'sequence'."
        )
    if algo.surrogate == "gspo" and algo.correction != "none" and algo.correction_level == "token":
        yield (
            "algo.surrogate is 'gspo', which has one ratio for a whole response, and algo.correction weighs its tokens "
            "one by one; set algo.correction_level to 'sequence' or 'geometric'."
        )
    if algo.correction == "none" and algo.correction_level != "token":
        yield (
            f"algo.correction_level is {algo.correction_level!r}, but algo.correction is 'none'; set it to 'truncate' "
            "or 'mask'."
        )


def _autoscale_faults(rollout: RolloutConfig) -> Iterator[str]:
    limits, size = rollout.autoscale, rollout.num_actors
    if limits.max != 0 and not 1 <= limits.min <= size <= limits.max:
        yield (
            f"rollout.autoscale needs 1 <= min <= rollout.num_actors <= max (or max 0: off); it has min {limits.min}, "
            f"num_actors {size}, max {limits.max}."
        )


def _staleness_faults(config: Config) -> Iterator[str]:
    k = config.train.max_staleness
    if k != 0 and config.algo.correction == "none":
        yield (
            f"train.max_staleness is {k}: tokens are sampled by weights up to {k} updates older than the learner's, "
            "and algo.correction is 'none'. Set it to 'truncate' (or 'mask'), or train.max_staleness to 0."
        )


def _learner_faults(config: Config) -> Iterator[str]:
    learner = config.learner
    if learner.num_gpus not in (0.0, 1.0):
        yield (
            f"learner.num_gpus is {learner.num_gpus:g}; a rank has one GPU, or 0 to learn on a CPU: for more GPUs set "
            "learner.num_ranks instead. None is shared with an engine, which keeps its memory while the learner "
            "computes: engines and learner on GPUs need two at least (with learner.lora.rank=16 and "
            "learner.reference=lora_off one of 80 GB is enough for a 7B's learner). With a single one set "
            "rollout.num_gpus=1 and learner.num_gpus=0."
        )
    if not all(0.0 <= beta < 1.0 for beta in learner.adam_betas):
        yield f"learner.adam_betas is {list(learner.adam_betas)}; both must be at least 0 and below 1."
    if learner.zero_stage == 0 and config.model.dtype != "float32":
        yield (
            "learner.zero_stage is 0 and model.dtype is bfloat16, where DeepSpeed keeps no float32 gradients; set "
            "learner.zero_stage to 1 (the same arithmetic in float32) or model.dtype to float32."
        )
    if learner.liger and learner.num_gpus == 0:
        yield "learner.liger is true, but its kernels run on a GPU alone; set it to false, or learner.num_gpus to 1."
    if learner.pack_tokens < config.model.max_tokens:
        yield (
            f"learner.pack_tokens is {learner.pack_tokens}, less than model.max_tokens ({config.model.max_tokens}): a "
            "prompt with one response may not fit into a packed sequence."
        )
    if learner.attention == "flex" and learner.num_gpus == 0:
        yield (
            "learner.attention is 'flex', which has no gradients on a CPU; set it to 'split', or learner.num_gpus to 1."
        )
    if learner.offload_optimizer and learner.zero_stage < 1:
        yield "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3; it is 0."
    if learner.offload_weights and learner.zero_stage != 3:
        yield f"learner.offload_weights needs learner.zero_stage 3; it is {learner.zero_stage}."


def _lora_faults(config: Config) -> Iterator[str]:
    """Where the reference is the policy with its adapters off."""
    learner = config.learner
    if learner.lora.rank == 0:
        yield (
            "learner.reference is 'lora_off', but there are no adapters to turn off; set learner.lora.rank, or "
            "learner.reference to 'device'."
        )
    if learner.train_vision or learner.train_merger:
        yield (
            "learner.reference is 'lora_off', but vision tower or merger are trained too, and would move with the "
            "policy; set learner.train_vision and learner.train_merger to false, or learner.reference to 'device'."
        )
    if any(phase.fresh_reference for phase in config.train.phases):
        yield (
            "A phase has fresh_reference, but learner.reference is 'lora_off', which is always the model folder's "
            "policy; set learner.reference to 'device'."
        )


def validate(config: Config) -> None:
    """Check values and combinations.

    Raises:
        ConfigError: names the key and prints the arithmetic.
    """
    check_fields(config)
    for fault in _tree_faults(config):
        raise ConfigError(fault)
