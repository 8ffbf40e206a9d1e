import pytest

from museg_ray.config.learning import CheckpointConfig
from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.config.validate import validate
from museg_ray.errors import ConfigError


@pytest.mark.parametrize(("key", "least"), [("every_steps", 0), ("keep_last", 1), ("keep_best", 0)])
def test_numbers_of_checkpoints_have_a_least_value(key: str, least: int):
    validate(Config(checkpoint=CheckpointConfig(**{key: least}), train=_one_step().train))
    with pytest.raises(ConfigError, match=rf"checkpoint\.{key} is {least - 1}; it must be at least {least}"):
        validate(Config(checkpoint=CheckpointConfig(**{key: least - 1}), train=_one_step().train))


def _one_step() -> Config:
    config = Config()
    config.train.phases = [PhaseConfig("only", 1)]
    return config
