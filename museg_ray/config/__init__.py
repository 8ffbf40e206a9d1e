"""The typed configuration tree and its loading."""

from museg_ray.config.load import load_config, save_config
from museg_ray.config.schema import Config, PhaseConfig, RewardWeights

__all__ = ["Config", "PhaseConfig", "RewardWeights", "load_config", "save_config"]
