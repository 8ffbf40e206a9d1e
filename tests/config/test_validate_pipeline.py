"""Staleness, refills, pushes, videos and the fleet: what their settings may be."""

import pytest

from museg_ray.config.schema import Config, PhaseConfig
from museg_ray.config.validate import validate
from museg_ray.errors import ConfigError


@pytest.fixture
def config() -> Config:
    config = Config()
    config.train.phases = [PhaseConfig("only", 2)]
    return config


def test_tokens_of_older_weights_need_a_correction(config: Config) -> None:
    validate(config)
    config.train.max_staleness = 2
    with pytest.raises(ConfigError, match=r"weights up to 2 updates older .* algo\.correction is 'none'.*'truncate'"):
        validate(config)
    config.algo.correction = "truncate"
    validate(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.max_staleness", -1),
        ("train.max_refills", -1),
        ("train.refill", "all"),
        ("rollout.on_push", "abort"),
        ("rollout.temperature", 0.0),
        ("rollout.temperature", 2.5),
        ("rollout.temperature", float("nan")),
        ("video.decoder", "opencv"),
        ("video.pair_tokens", -1),
        ("fleet.max_restarts", -1),
        ("fleet.ping_every_s", 0.0),
        ("fleet.ping_timeout_s", float("inf")),
        ("fleet.restart_window_s", 0.0),
        ("fleet.backoff_s", -1.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(key: str, value: object, config: Config) -> None:
    section, name = key.split(".")
    setattr(getattr(config, section), name, value)
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        validate(config)


def test_a_decoder_that_is_not_installed_is_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config.video.decoder = "decord"
    validate(config)
    monkeypatch.setattr("museg_ray.config.validate.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'decord', and that package is not installed.*video\.decoder=pyav"):
        validate(config)
