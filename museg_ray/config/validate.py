"""Checks of a configuration's values and of what they must be to one another."""

import math
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec

from museg_ray.config.learning import AlgoConfig
from museg_ray.config.rules import check_fields
from museg_ray.config.schema import Config, DataConfig, PhaseConfig, RolloutConfig
from museg_ray.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _validate_single_values(config: Config) -> None:
    """Beyond what their types say."""
    _require(
        config.video.decoder == "pyav" or find_spec("decord") is not None,
        "video.decoder is 'decord', and that package is not installed; install decord==0.6.0, or set "
        "video.decoder=pyav.",
    )
    temperature = config.rollout.temperature
    _require(
        0.0 < temperature <= 2.0,
        f"rollout.temperature is {temperature}; it must be above 0, since groups need varied responses, and at most 2, "
        "which is vLLM's bound.",
    )


def _validate_video(config: Config) -> None:
    video = config.video
    _require(
        0 < video.min_pixels <= video.max_pixels,
        f"video.min_pixels ({video.min_pixels}) must be above 0 and at most video.max_pixels ({video.max_pixels}).",
    )
    _require(bool(video.store_dir), "video.store_dir is empty; set it to the folder of prepared clips.")
    clip_gib = 6 * video.total_pixels / 1024**3  # 3 bytes a pixel, and the budget counts frame pairs
    _require(
        not video.steps_ahead or video.ahead_gib >= clip_gib,
        f"video.ahead_gib is {video.ahead_gib:g}, less than one clip ({clip_gib:.3f} GiB at video.total_pixels "
        f"{video.total_pixels}): nothing could be prepared ahead. Raise it, or set video.steps_ahead=0.",
    )
    step_gib = config.train.prompts_per_step * clip_gib
    _require(
        video.store_gib >= video.ahead_gib + step_gib,
        f"video.store_gib is {video.store_gib:g}, less than a step's clips and those prepared ahead: "
        f"{config.train.prompts_per_step} prompts x {clip_gib:.3f} GiB + video.ahead_gib {video.ahead_gib:g} = "
        f"{video.ahead_gib + step_gib:.2f} GiB. They would drive one another out.",
    )


def check_source_weights(weights: Mapping[str, float]) -> None:
    """Check what can be known of `data.source_weights` without the queries.

    Raises:
        ConfigError: names the source whose weight is negative or not finite; or all are 0.
    """
    for source, weight in weights.items():
        key = f"data.source_weights[{source!r}]"
        _require(0.0 <= weight < math.inf, f"{key} is {weight}; it must be a number of at least 0 (0: not drawn).")
    is_drawn = not weights or any(weights.values())
    _require(is_drawn, "data.source_weights are all 0: no query is left; leave it empty to draw from all sources.")


def _validate_data(data: DataConfig) -> None:
    check_source_weights(data.source_weights)
    is_path = "." in data.curriculum and all(part.isidentifier() for part in data.curriculum.split("."))
    _require(
        is_path or not data.curriculum,
        f"data.curriculum is {data.curriculum!r}; it must be an import path, package.module.function, or empty.",
    )


def _validate_rewards(config: Config) -> None:
    rewards, brevity = config.rewards, config.rewards.brevity
    _require(
        0.01 <= rewards.response_timeout_s <= 86_400.0,
        f"rewards.response_timeout_s is {rewards.response_timeout_s:g}; it must lie between 0.01 and 86400 (a day).",
    )
    _require(
        0 <= brevity.free_chars < brevity.max_chars,
        f"rewards.brevity needs 0 <= free_chars < max_chars; it has {brevity.free_chars} and {brevity.max_chars}.",
    )
    is_weighed = any(phase.weights.custom for phase in config.train.phases)
    _require(
        not is_weighed or bool(rewards.custom),
        "A phase weighs the reward `custom`, but rewards.custom is empty; set it to an import path.",
    )
    _require(
        is_weighed or not rewards.custom,
        f"rewards.custom is {rewards.custom!r}, but no phase weighs it; set weights.custom in train.phases.",
    )


def _validate_algo(algo: AlgoConfig, prompts_per_step: int) -> None:
    _require(
        algo.dual_clip == 0.0 or 1.0 < algo.dual_clip < math.inf,
        f"algo.dual_clip is {algo.dual_clip:g}; it must be above 1 (a bound on the ratio), or 0 for none.",
    )
    _require(
        algo.num_minibatches <= prompts_per_step,
        f"algo.num_minibatches is {algo.num_minibatches}, more than train.prompts_per_step ({prompts_per_step}): "
        "each update needs a group.",
    )
    _require(
        algo.advantage == "grpo" or not algo.scale_advantages,
        "algo.advantage is 'rloo', which has no division by the standard deviation; set algo.scale_advantages=false.",
    )
    _require(
        algo.surrogate != "cispo" or algo.dual_clip == 0.0,
        "algo.surrogate is 'cispo', which bounds the ratio by algo.clip_high for every token; set algo.dual_clip=0.",
    )
    _validate_levels(algo)


def _validate_levels(algo: AlgoConfig) -> None:
    """What goes by response and what by token."""
    _require(
        algo.surrogate != "gspo" or algo.loss_mean == "sequence",
        f"algo.surrogate is 'gspo', a loss of whole responses that weigh the same; algo.loss_mean is "
        f"{algo.loss_mean!r}. Set it to 'sequence'.",
    )
    _require(
        algo.surrogate != "gspo" or algo.correction == "none" or algo.correction_level != "token",
        "algo.surrogate is 'gspo', which has one ratio for a whole response, and algo.correction weighs its tokens one "
        "by one; set algo.correction_level to 'sequence' or 'geometric'.",
    )
    _require(
        algo.correction != "none" or algo.correction_level == "token",
        f"algo.correction_level is {algo.correction_level!r}, but algo.correction is 'none'; set it to 'truncate' or "
        "'mask'.",
    )


def _validate_autoscale(rollout: RolloutConfig) -> None:
    limits, size = rollout.autoscale, rollout.num_actors
    _require(
        limits.max == 0 or 1 <= limits.min <= size <= limits.max,
        f"rollout.autoscale needs 1 <= min <= rollout.num_actors <= max (or max 0: off); it has min {limits.min}, "
        f"num_actors {size}, max {limits.max}.",
    )


def _validate_staleness(config: Config) -> None:
    k, correction = config.train.max_staleness, config.algo.correction
    _require(
        k == 0 or correction != "none",
        f"train.max_staleness is {k}: tokens are sampled by weights up to {k} updates older than the learner's, and "
        "algo.correction is 'none'. Set it to 'truncate' (or 'mask'), or train.max_staleness to 0.",
    )


def _validate_learner(config: Config) -> None:
    learner = config.learner
    _require(
        learner.num_gpus in (0.0, 1.0),
        f"learner.num_gpus is {learner.num_gpus:g}; a rank has one GPU, or 0 to learn on a CPU: for more GPUs set "
        "learner.num_ranks instead. None is shared with an engine, which keeps its memory while the learner computes: "
        "engines and learner on GPUs need two at least (with learner.lora.rank=16 and learner.reference=lora_off one "
        "of 80 GB is enough for a 7B's learner). With a single one set rollout.num_gpus=1 and learner.num_gpus=0.",
    )
    _require(
        all(0.0 <= beta < 1.0 for beta in learner.adam_betas),
        f"learner.adam_betas is {list(learner.adam_betas)}; both must be at least 0 and below 1.",
    )
    _require(
        learner.zero_stage > 0 or config.model.dtype == "float32",
        "learner.zero_stage is 0 and model.dtype is bfloat16, where DeepSpeed keeps no float32 gradients; set "
        "learner.zero_stage to 1 (the same arithmetic in float32) or model.dtype to float32.",
    )
    _require(
        not learner.liger or learner.num_gpus > 0,
        "learner.liger is true, but its kernels run on a GPU alone; set it to false, or learner.num_gpus to 1.",
    )
    _require(
        learner.pack_tokens >= config.model.max_tokens,
        f"learner.pack_tokens is {learner.pack_tokens}, less than model.max_tokens ({config.model.max_tokens}): a "
        "prompt with one response may not fit into a packed sequence.",
    )
    _require(
        learner.attention != "flex" or learner.num_gpus > 0,
        "learner.attention is 'flex', which has no gradients on a CPU; set it to 'split', or learner.num_gpus to 1.",
    )
    _require(
        not learner.offload_optimizer or learner.zero_stage >= 1,
        "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3; it is 0.",
    )
    _require(
        not learner.offload_weights or learner.zero_stage == 3,
        f"learner.offload_weights needs learner.zero_stage 3; it is {learner.zero_stage}.",
    )
    _validate_lora(config)


def _validate_lora(config: Config) -> None:
    learner = config.learner
    if learner.reference != "lora_off":
        return
    _require(
        learner.lora.rank > 0,
        "learner.reference is 'lora_off', but there are no adapters to turn off; set learner.lora.rank, or "
        "learner.reference to 'device'.",
    )
    _require(
        not learner.train_vision and not learner.train_merger,
        "learner.reference is 'lora_off', but vision tower or merger are trained too, and would move with the policy; "
        "set learner.train_vision and learner.train_merger to false, or learner.reference to 'device'.",
    )
    _require(
        not any(phase.fresh_reference for phase in config.train.phases),
        "A phase has fresh_reference, but learner.reference is 'lora_off', which is always the model folder's policy; "
        "set learner.reference to 'device'.",
    )


def _validate_phase(where: str, phase: PhaseConfig) -> None:
    _require("{question}" in phase.prompt, f"{where}.prompt does not contain {{question}}: {phase.prompt!r}")
    is_weighed = any(getattr(phase.weights, part.name) for part in fields(phase.weights))
    _require(is_weighed, f"{where}.weights are all 0: no response would be better than another.")


def validate(config: Config) -> None:
    """Check values and combinations.

    Raises:
        ConfigError: names the key and prints the arithmetic.
    """
    check_fields(config)
    _validate_single_values(config)
    completion, limit = config.rollout.max_completion_tokens, config.model.max_tokens
    _require(
        completion < limit,
        f"rollout.max_completion_tokens ({completion}) leaves no room for the prompt in model.max_tokens ({limit}).",
    )
    _require(bool(config.train.phases), "train.phases is empty; a run needs at least one phase with steps.")
    _require(config.total_steps >= 1, "The phases of train.phases have 0 steps together; a run needs at least one.")
    names = [phase.name for phase in config.train.phases]
    for index, phase in enumerate(config.train.phases):
        _validate_phase(f"train.phases[{index}]", phase)
        # Metrics, pictures and alarms tell phases apart by name.
        _require(names.count(phase.name) == 1, f"train.phases[{index}].name {phase.name!r} is not its alone.")
    _validate_data(config.data)
    _validate_video(config)
    _validate_rewards(config)
    _validate_algo(config.algo, config.train.prompts_per_step)
    _validate_autoscale(config.rollout)
    _validate_staleness(config)
    _validate_learner(config)
