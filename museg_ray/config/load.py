"""Reads a YAML file and `key=value` overrides into the typed tree, and writes the resolved tree back."""

import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from museg_ray.config.schema import Config
from museg_ray.config.validate import validate
from museg_ray.errors import ConfigError
from museg_ray.files import check_regular

MODEL_CONFIG_FILE = "museg_config.yaml"
"""Beside the weights of an exported model: what it was trained with, so that it sees videos the same way."""

MAX_SIZE_BYTES = 1 << 20
"""Of a configuration file; the longest that is shipped has 2,461, and a wrong file may have gigabytes."""

MAX_DEPTH = 50
"""Of lists and maps in each other; the schema has four."""
MAX_QUOTED = 100
"""Characters of an override that an error shows."""


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
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{source}: {name} holds a NUL character, which no path and no name can hold; remove it.")
        inner = _node_type(hints[key])
        if inner is not None:
            items = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            for item in items:
                _check_keys(item, inner, name, source)


_UNREADABLE = (YAMLError, OmegaConfBaseException, RecursionError, ValueError)
"""What reading YAML raises; the last two of a key of thousands of parts and of a number of thousands of digits."""


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error)
    if isinstance(error, OmegaConfBaseException):
        text = text.splitlines()[0]  # the lines after it name OmegaConf internals
    return " ".join(text.split()).removesuffix(".")


def _check_depth(text: str) -> None:
    """Invariant: only YAML of a sane depth is loaded. The loader recurses in C, where 100,000 brackets end the process.

    Raises:
        YAMLError: it is deeper, or no YAML.
    """
    depth = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise YAMLError(f"it is nested more than {MAX_DEPTH} deep")


def _read_text(path: Path) -> str:
    try:
        check_regular(path)
        size_bytes = path.stat().st_size
        text = path.read_text(encoding="utf-8-sig") if size_bytes <= MAX_SIZE_BYTES else ""
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The configuration {path} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    if size_bytes > MAX_SIZE_BYTES:
        raise ConfigError(
            f"The configuration {path} has {size_bytes:,} bytes, of at most {MAX_SIZE_BYTES:,}. Is it the right file?"
        )
    return text


def _read_yaml(path: Path) -> DictConfig:
    text = _read_text(path)
    try:
        _check_depth(text)
        loaded = OmegaConf.load(io.StringIO(text))
    except OSError as error:  # what OmegaConf raises of a number alone
        raise ConfigError(f"{path} must hold key: value pairs at its top level.") from error
    except _UNREADABLE as error:
        raise ConfigError(f"{path} is not valid YAML: {_reason(error)}. Correct it there.") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} must hold key: value pairs at its top level.")
    return loaded


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        key, sign, _ = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"Override {override!r} is not of the form key=value, e.g. learner.learning_rate=1e-5.")
    read = OmegaConf.create()
    for override in overrides:
        try:
            _check_depth(override.partition("=")[2])
            read.merge_with_dotlist([override])
        except _UNREADABLE as error:
            quoted = override if len(override) <= MAX_QUOTED else override[:MAX_QUOTED] + "…"
            raise ConfigError(f"Cannot read the override {quoted!r}: {_reason(error)}.") from error
    return read


@contextmanager
def _errors_of(source: str) -> Iterator[None]:
    try:
        yield
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {error.full_key}: {_reason(error)}.") from error
    except ConfigError:
        raise
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: {_reason(error)}.") from error


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
        with _errors_of(source):
            _check_keys(OmegaConf.to_container(layer), Config, "", source)
            merged = OmegaConf.merge(merged, layer)
    with _errors_of(str(path)):
        config = OmegaConf.to_object(merged)
        assert isinstance(config, Config)
        validate(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Write the resolved tree as YAML that `load_config` reads back to an equal tree."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
