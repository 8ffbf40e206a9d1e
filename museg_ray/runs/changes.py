"""What may differ between a run's configuration and the one that it is resumed with."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.errors import ConfigError
from museg_ray.rewards.phases import phase_steps

FIXED = (
    "model.",
    "data.",
    "run.seed",
    "train.prompts_per_step",
    "video.fps",
    "video.max_frames",
    "video.min_pixels",
    "video.max_pixels",
    "video.total_pixels",
    "video.size_multiple",
    "video.pair_tokens",
    "video.sampling",
    "learner.lora.",
    "learner.train_vision",
    "learner.train_merger",
    "evaluation.",
)
"""Keys, or beginnings of keys: with another value the steps so far, or the evaluation before them, would belong to
another run than the steps to come."""
FREE = ("run.dir", "run.name", "run.resume", "run.restart", "run.accept_changed_data")
"""Where the run lies and how it was started: nothing follows from them."""

PHASES = "train.phases"
MISSING = "nothing"


def check_changes(was: Config, now: Config, step: int) -> list[str]:
    """What differs and may, one line each.

    Args:
        was: of the run up to the checkpoint.
        now: of the run from there on.
        step: of the checkpoint.

    Raises:
        ConfigError: a difference that a run cannot be resumed with: names key, old and new value.
    """
    _check_phases(was, now, step)
    _check_reference(was, now, step)
    changes = []
    for key, old, new in _differences(_flat(asdict(was)), _flat(asdict(now))):
        if key.startswith(FREE):
            continue
        if key.startswith(FIXED):
            raise _refusal(key, old, new, step)
        changes.append(f"{key} was {old!r} up to step {step} and is {new!r} from there on")
    prompts = was.evaluation_prompt, now.evaluation_prompt
    if prompts[0] != prompts[1]:
        raise _refusal("evaluation.prompt (the last phase's where it is empty)", *prompts, step)
    return changes


def _check_phases(was: Config, now: Config, step: int) -> None:
    """The steps that were made must be the same ones, whatever their phase's length is now."""
    if now.total_steps < step:
        raise ConfigError(
            f"The phases of {PHASES} have {now.total_steps} steps; the run to be resumed has made {step}. "
            "Give them more, or start a new run."
        )
    made, planned = (phase_steps(config.train.phases) for config in (was, now))
    for before, after in zip(made, planned, strict=False):
        if before.step > step:
            return
        index = was.train.phases.index(before.phase)
        for key, old, new in _differences(_without_steps(before.phase), _without_steps(after.phase)):
            raise _refusal(f"{PHASES}[{index}].{key}", old, new, step)
        if before.is_first != after.is_first:
            old, new = ([phase.steps for phase in config.train.phases] for config in (was, now))
            raise _refusal(f"{PHASES}: phase {before.phase.name!r} at step {before.step}", old, new, step)


def _check_reference(was: Config, now: Config, step: int) -> None:
    """The policy that a phase took as its KL reference is in a checkpoint where there is a KL term, and only there."""
    took_one = any(made.phase.fresh_reference for made in phase_steps(was.train.phases) if made.step <= step)
    if took_one and (was.algo.beta == 0) != (now.algo.beta == 0):
        raise _refusal("algo.beta", was.algo.beta, now.algo.beta, step)


def _without_steps(phase: PhaseConfig) -> dict[str, Any]:
    return {key: value for key, value in _flat(asdict(phase)).items() if key != "steps"}


def _refusal(key: str, old: object, new: object, step: int) -> ConfigError:
    return ConfigError(
        f"{key} is {new!r}, but the run to be resumed had {old!r} up to step {step}. Set it back to that, or start a "
        "new run under another run.name."
    )


def _differences(was: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys((*was, *now)):
        old, new = was.get(key, MISSING), now.get(key, MISSING)
        if old != new:
            yield key, old, new


def _flat(node: Any, where: str = "") -> dict[str, Any]:
    """`{"train": {"phases": [{"steps": 3}]}}` -> `{"train.phases[0].steps": 3}`."""
    if isinstance(node, dict):
        inner = [(f"{where}.{key}" if where else str(key), value) for key, value in node.items()]
    elif isinstance(node, list):
        inner = [(f"{where}[{index}]", value) for index, value in enumerate(node)]
    else:
        return {where: node}
    return {name: leaf for key, value in inner for name, leaf in _flat(value, key).items()}
