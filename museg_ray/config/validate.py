"""Checks of a configuration's values and of what they must be to one another."""

import math
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec

from museg_ray.config.learning import AlgoConfig, CheckpointConfig
from museg_ray.config.schema import AlarmConfig, Config, DataConfig, FleetConfig, PhaseConfig, RolloutConfig
from museg_ray.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _validate_choices(config: Config) -> None:
    choices = [
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
        ("video.sampling", config.video.sampling, ("time", "qwen_vl_utils")),
        ("video.decoder", config.video.decoder, ("pyav", "decord")),
        ("video.store_mode", config.video.store_mode, ("private", "group", "shared")),
        ("rewards.global_matching", config.rewards.global_matching, ("iou", "f1")),
        ("rewards.local_matching", config.rewards.local_matching, ("sequential", "maximum", "none")),
        ("rewards.timestamp", config.rewards.timestamp, ("all", "fraction")),
        ("algo.kl_estimator", config.algo.kl_estimator, ("k1", "k2", "k3")),
        ("algo.loss_mean", config.algo.loss_mean, ("sequence", "token", "constant")),
        ("algo.correction", config.algo.correction, ("none", "truncate", "mask")),
        ("learner.schedule", config.learner.schedule, ("linear", "constant")),
        ("learner.reference", config.learner.reference, ("device", "sharded", "cpu", "lora_off")),
        ("learner.attention", config.learner.attention, ("split", "flex", "dense")),
        ("learner.zero_stage", config.learner.zero_stage, (0, 1, 2, 3)),
        ("train.refill", config.train.refill, ("none", "zero_variance")),
        ("rollout.on_push", config.rollout.on_push, ("continue", "restart", "wait")),
    ]
    for key, value, allowed in choices:
        _require(value in allowed, f"{key} is {value!r}; it may be one of {', '.join(map(repr, allowed))}.")
    _require(
        config.video.decoder == "pyav" or find_spec("decord") is not None,
        "video.decoder is 'decord', and that package is not installed; install decord==0.6.0, or set "
        "video.decoder=pyav.",
    )


def _validate_ranges(config: Config) -> None:
    at_least = [
        ("rollout.group_size", config.rollout.group_size, 2),
        ("rollout.num_actors", config.rollout.num_actors, 1),
        ("rewards.num_actors", config.rewards.num_actors, 1),
        ("video.num_actors", config.video.num_actors, 1),
        ("train.prompts_per_step", config.train.prompts_per_step, 1),
        ("video.max_frames", config.video.max_frames, 4),
        ("video.steps_ahead", config.video.steps_ahead, 0),
        ("video.reader_videos", config.video.reader_videos, 1),
        ("run.seed", config.run.seed, 0),
        ("rollout.num_cpus", config.rollout.num_cpus, 0),
        ("rewards.num_cpus", config.rewards.num_cpus, 0),
        ("video.num_cpus", config.video.num_cpus, 0),
        ("learner.num_cpus", config.learner.num_cpus, 0),
        ("learner.num_ranks", config.learner.num_ranks, 1),
        ("learner.num_threads", config.learner.num_threads, 0),
        ("learner.chunk_tokens", config.learner.chunk_tokens, 1),
        ("learner.warmup_steps", config.learner.warmup_steps, 0),
        ("learner.lora.rank", config.learner.lora.rank, 0),
        ("video.size_multiple", config.video.size_multiple, 1),
        ("video.pair_tokens", config.video.pair_tokens, 0),
        ("algo.num_epochs", config.algo.num_epochs, 1),
        ("algo.num_minibatches", config.algo.num_minibatches, 1),
        ("train.max_staleness", config.train.max_staleness, 0),
        ("train.max_refills", config.train.max_refills, 0),
    ]
    for key, value, least in at_least:
        _require(value >= least, f"{key} is {value}; it must be at least {least}.")
    _require_share("data.multi_segment_share", config.data.multi_segment_share)
    temperature = config.rollout.temperature
    _require(
        0.0 < temperature <= 2.0,
        f"rollout.temperature is {temperature}; it must be above 0, since groups need varied responses, and at most 2, "
        "which is vLLM's bound.",
    )


def _require_share(key: str, share: float) -> None:
    _require(0.0 <= share <= 1.0, f"{key} is {share}; it must lie between 0 and 1.")


def _validate_video(config: Config) -> None:
    video = config.video
    for name in ("fps", "deadline_s", "reader_gib", "store_gib", "download_gib"):
        value = getattr(video, name)
        _require(0.0 < value < math.inf, f"video.{name} is {value:g}; it must be above 0.")
    for name in ("deadline_per_video_s", "ahead_gib"):
        value = getattr(video, name)
        _require(0.0 <= value < math.inf, f"video.{name} is {value:g}; it cannot be negative.")
    _require(
        0 < video.min_pixels <= video.max_pixels,
        f"video.min_pixels ({video.min_pixels}) must be above 0 and at most video.max_pixels ({video.max_pixels}).",
    )
    _require(video.total_pixels > 0, f"video.total_pixels is {video.total_pixels}; it must be above 0.")
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
        0.0 < rewards.wasserstein_beta < math.inf,
        f"rewards.wasserstein_beta is {rewards.wasserstein_beta:g}; it must be above 0.",
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
    for name, least in (("beta", 0.0), ("clip_high", 0.0), ("entropy_bonus", 0.0), ("correction_limit", 1.0)):
        value = getattr(algo, name)
        _require(least <= value < math.inf, f"algo.{name} is {value:g}; it must be a number of at least {least:g}.")
    _require_share("algo.clip_low", algo.clip_low)
    _require(
        algo.dual_clip == 0.0 or 1.0 < algo.dual_clip < math.inf,
        f"algo.dual_clip is {algo.dual_clip:g}; it must be above 1 (a bound on the ratio), or 0 for none.",
    )
    _require(
        algo.num_minibatches <= prompts_per_step,
        f"algo.num_minibatches is {algo.num_minibatches}, more than train.prompts_per_step ({prompts_per_step}): "
        "each update needs a group.",
    )


def _validate_fleet(fleet: FleetConfig, rollout: RolloutConfig) -> None:
    limits, size = rollout.autoscale, rollout.num_actors
    _require(
        limits.max == 0 or 1 <= limits.min <= size <= limits.max,
        f"rollout.autoscale needs 1 <= min <= rollout.num_actors <= max (or max 0: off); it has min {limits.min}, "
        f"num_actors {size}, max {limits.max}.",
    )
    for name in ("max_restarts", "backoff_s"):
        value = getattr(fleet, name)
        _require(0 <= value < math.inf, f"fleet.{name} is {value:g}; it cannot be negative.")
    for name in ("restart_window_s", "ping_every_s", "ping_timeout_s", "place_timeout_s"):
        value = getattr(fleet, name)
        _require(0.0 < value < math.inf, f"fleet.{name} is {value:g}; it must be above 0.")


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
        f"learner.num_gpus is {learner.num_gpus:g}; a rank has one GPU, or 0: set learner.num_ranks instead.",
    )
    rates = ("learning_rate", "vision_learning_rate", "merger_learning_rate", "weight_decay", "max_grad_norm")
    for name in rates:
        value = getattr(learner, name)
        _require(
            value is None or 0.0 <= value < math.inf, f"learner.{name} is {value}; it must be a number of at least 0."
        )
    for name in ("start_timeout_s", "step_timeout_s"):
        value = getattr(learner, name)
        _require(0.0 < value < math.inf, f"learner.{name} is {value:g}; it must be above 0.")
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
    _require(0.0 < learner.lora.alpha < math.inf, f"learner.lora.alpha is {learner.lora.alpha:g}; it must be above 0.")
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


def _validate_checkpoint(checkpoint: CheckpointConfig) -> None:
    for name, least in (("every_steps", 0), ("keep_last", 1), ("keep_best", 0)):
        value = getattr(checkpoint, name)
        _require(value >= least, f"checkpoint.{name} is {value}; it must be at least {least}.")


def _validate_alarms(alarms: AlarmConfig) -> None:
    for limit in fields(alarms):
        key, value = f"alarms.{limit.name}", getattr(alarms, limit.name)
        if limit.name.endswith("_share"):
            _require_share(key, value)
        _require(0.0 <= value < math.inf, f"{key} is {value}; it must be a number of at least 0.")


def _validate_phase(where: str, phase: PhaseConfig) -> None:
    _require(phase.steps >= 0, f"{where}.steps is {phase.steps}; it cannot be negative.")
    _require("{question}" in phase.prompt, f"{where}.prompt does not contain {{question}}: {phase.prompt!r}")
    if phase.multi_segment_share is not None:
        _require_share(f"{where}.multi_segment_share", phase.multi_segment_share)
    weights = {part.name: getattr(phase.weights, part.name) for part in fields(phase.weights)}
    for name, weight in weights.items():
        _require(math.isfinite(weight), f"{where}.weights.{name} is {weight}; it must be a finite number.")
    _require(any(weights.values()), f"{where}.weights are all 0: no response would be better than another.")


def validate(config: Config) -> None:
    """Check values and combinations.

    Raises:
        ConfigError: names the key and prints the arithmetic.
    """
    _validate_choices(config)
    _validate_ranges(config)
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
    _validate_fleet(config.fleet, config.rollout)
    _validate_staleness(config)
    _validate_learner(config)
    _validate_alarms(config.alarms)
    _validate_checkpoint(config.checkpoint)
