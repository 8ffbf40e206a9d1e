"""Checks of a configuration's values and of what they must be to one another."""

import math
from collections.abc import Mapping
from dataclasses import fields

from museg_ray.config.schema import AlarmConfig, Config, DataConfig, PhaseConfig
from museg_ray.errors import ConfigError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _validate_choices(config: Config) -> None:
    choices = [
        ("model.dtype", config.model.dtype, ("float32", "bfloat16")),
        ("video.sampling", config.video.sampling, ("time", "qwen_vl_utils")),
        ("rewards.global_matching", config.rewards.global_matching, ("iou", "f1")),
        ("rewards.local_matching", config.rewards.local_matching, ("sequential", "maximum", "none")),
        ("rewards.timestamp", config.rewards.timestamp, ("all", "fraction")),
        ("learner.schedule", config.learner.schedule, ("linear", "constant")),
        ("learner.zero_stage", config.learner.zero_stage, (0, 1, 2, 3)),
    ]
    for key, value, allowed in choices:
        _require(value in allowed, f"{key} is {value!r}; it may be one of {', '.join(map(repr, allowed))}.")


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
    ]
    for key, value, least in at_least:
        _require(value >= least, f"{key} is {value}; it must be at least {least}.")
    _require_share("data.multi_segment_share", config.data.multi_segment_share)
    _require(config.rollout.temperature > 0.0, "rollout.temperature must be above 0: groups need varied responses.")


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
    _validate_alarms(config.alarms)
