"""Reads a YAML file and `key=value` overrides into the typed tree, and writes the resolved tree back."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from museg_ray.config.schema import Config
from museg_ray.config.validate import validate
from museg_ray.errors import ConfigError

MODEL_CONFIG_FILE = "museg_config.yaml"
"""Beside the weights of an exported model: what it was trained with, so that it sees videos the same way."""


def _node_type(annotation: Any) -> type | None:
    """The dataclass that a field holds, alone or as the items of a list; None for a plain value."""
    inner = get_args(annotation)[0] if get_origin(annotation) is list else annotation
    return inner if is_dataclass(inner) and isinstance(inner, type) else None


def _check_keys(node: object, schema: type, where: str, source: str) -> None:
    """Refuse unknown keys: a misspelt key that is silently ignored trains with the wrong value."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{source}: {where or 'the file'} must hold key: value pairs, found {node!r}.")
    hints = get_type_hints(schema)
    for key, value in node.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            known = [field.name for field in fields(schema)]
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Known keys here: {', '.join(known)}."
            raise ConfigError(f"{source}: unknown key {name!r}. {hint}")
        inner = _node_type(hints[key])
        if inner is not None:
            items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            for item in items:
                _check_keys(item, inner, name, source)


def _read_yaml(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error.strerror or error}.") from error
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} must hold key: value pairs at its top level.")
    return loaded


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key, sign, _ = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"Override {override!r} is not of the form key=value, e.g. learner.learning_rate=1e-5.")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"Cannot read the overrides {list(overrides)}: {error}") from error


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read, merge, type-check and validate.

    Args:
        path: YAML file.
        overrides: `key=value` strings that win over the file, e.g. `rollout.num_actors=4`.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest name), wrong type, or values that do not fit.
    """
    layers = [(_read_yaml(Path(path)), str(path)), (_read_overrides(overrides), "override")]
    merged = OmegaConf.structured(Config)
    for layer, source in layers:
        _check_keys(OmegaConf.to_container(layer), Config, "", source)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]  # the lines after it name OmegaConf internals
            raise ConfigError(f"{source}: {error.full_key}: {reason}.") from error
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    validate(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Write the resolved tree as YAML that `load_config` reads back to an equal tree."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
