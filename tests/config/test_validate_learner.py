"""Checks of `learner`: values, and what they must be to one another."""

import pytest

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.config.validate import validate
from museg_ray.errors import ConfigError


@pytest.fixture
def config() -> Config:
    config = Config()
    config.train.phases = [PhaseConfig(name="only", steps=2)]
    validate(config)
    return config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_ranks", 0, r"learner\.num_ranks is 0"),
        ("num_gpus", 2.0, r"set learner\.num_ranks"),
        ("num_gpus", 0.5, r"one GPU, or 0 .* need two at least .* rollout\.num_gpus=1 and learner\.num_gpus=0"),
        ("num_threads", -1, r"learner\.num_threads is -1"),
        ("adam_betas", (0.9, 1.0), r"\[0\.9, 1\.0\]; both must be"),
        ("zero_stage", 0, r"keeps no float32 gradients"),
        ("liger", True, r"on a GPU alone"),
        ("start_timeout_s", float("inf"), r"learner\.start_timeout_s is inf"),
        ("attention", "flash", r"'split', 'flex', 'dense'"),
        ("reference", "disk", r"'device', 'sharded', 'cpu', 'lora_off'"),
        ("chunk_tokens", 0, r"learner\.chunk_tokens is 0"),
        ("learning_rate", float("nan"), r"learner\.learning_rate is nan"),
        ("vision_learning_rate", -1.0, r"learner\.vision_learning_rate is -1"),
        ("merger_learning_rate", float("inf"), r"learner\.merger_learning_rate is inf"),
        ("step_timeout_s", 0.0, r"learner\.step_timeout_s is 0"),
        ("pack_tokens", 4095, r"4095, less than model\.max_tokens \(4096\)"),
        ("attention", "flex", r"no gradients on a CPU"),
        ("offload_weights", True, r"needs learner\.zero_stage 3; it is 2"),
        ("reference", "lora_off", r"no adapters to turn off"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_may_be(config: Config, key: str, value: object, message: str) -> None:
    setattr(config.learner, key, value)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_offloading_the_optimizer_needs_zero(config: Config) -> None:
    config.model.dtype, config.learner.offload_optimizer, config.learner.zero_stage = "float32", True, 0
    with pytest.raises(ConfigError, match=r"zero_stage 1, 2 or 3"):
        validate(config)


def test_a_reference_without_adapters_must_not_move_with_the_policy(config: Config) -> None:
    learner = config.learner
    learner.lora.rank, learner.reference = 8, "lora_off"
    with pytest.raises(ConfigError, match=r"would move with the policy"):
        validate(config)
    learner.train_vision = learner.train_merger = False
    validate(config)
    config.train.phases[0].fresh_reference = True
    with pytest.raises(ConfigError, match=r"fresh_reference"):
        validate(config)


def test_alpha_and_rank_of_the_adapters(config: Config) -> None:
    config.learner.lora.alpha = 0.0
    with pytest.raises(ConfigError, match=r"learner\.lora\.alpha is 0"):
        validate(config)
