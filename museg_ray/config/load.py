"""Reads a YAML file and `key=value` overrides into the typed tree, and writes the resolved tree back."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import reduce
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from yaml import YAMLError
from yaml.constructor import SafeConstructor

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
"""Characters of a value that an error shows."""

_INTERPOLATION = re.compile(r"(\\*)\$\{")
_READ: Mapping[type, Callable[[str], Any]] = {
    str: lambda text: _INTERPOLATION.sub(r"\1\1\\${", text),  # else OmegaConf would put something in
    int: int,
    float: lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    bool: lambda text: SafeConstructor.bool_values[text.lower()],
}
"""How a field of a type takes its text; ValueError or KeyError where it cannot."""
_EXPECTED: Mapping[type, str] = {
    str: "a text (no NUL in it; in quotes where YAML would read a list or a map)",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    tuple: "a list of two",
    dict: "key: value pairs",
}
_NULLS = ("", "~", "null", "Null", "NULL")


class _Loader(yaml.CBaseLoader):
    """Takes every scalar for a text. What it means follows from its field's type alone: else YAML would call a run
    named 1.10 1.1, and a phase named no False."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            ((twice, _),) = Counter(key.value for key, _ in node.value).most_common(1)
            raise YAMLError(f"the key {twice!r} is there twice{node.start_mark}")
        inherited = mapping.pop("<<", {})
        if not isinstance(inherited, dict):
            raise YAMLError(f"<< takes one map{node.start_mark}")
        return inherited | mapping


def _typed(node: object, schema: type, where: str) -> dict[str, Any]:
    """Those fields of a dataclass that a node has, each of its type.

    Raises:
        ConfigError: an unknown key: a misspelt one that is silently ignored trains with the wrong value. Or a value
            that its field cannot hold.
    """
    if not isinstance(node, dict):
        raise ConfigError(f"{where or 'the file'} must hold key: value pairs, found {_shown(node)}.")
    hints, typed = get_type_hints(schema), dict[str, Any]()
    for key, value in node.items():
        name = f"{where}.{key}" if where else key
        if key not in hints:
            nearest = difflib.get_close_matches(key, hints, n=1, cutoff=0.4)
            hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Known keys here: {', '.join(hints)}."
            raise ConfigError(f"unknown key {name!r}. {hint}")
        typed[key] = _value(value, hints[key], name)
    return typed


def _value(node: Any, kind: Any, where: str) -> Any:
    """What a field of this type holds."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return _typed(node, kind, where)
    if NoneType in inner:
        return None if node in _NULLS else _value(node, inner[0], where)
    if origin is dict and isinstance(node, dict):
        return {key: _value(value, inner[1], f"{where}.{key}") for key, value in node.items()}
    if origin is list and isinstance(node, list):
        return [_value(item, inner[0], f"{where}[{index}]") for index, item in enumerate(node)]
    if origin is tuple and isinstance(node, list) and len(node) == len(inner):
        return [_value(item, of, where) for item, of in zip(node, inner, strict=True)]
    if kind in _READ and isinstance(node, str) and "\0" not in node:
        with suppress(ValueError, KeyError):
            return _READ[kind](node)
    raise ConfigError(f"{where} is {_shown(node)}; expected {_EXPECTED[origin or kind]}.")


def _shown(node: object) -> str:
    """A list or map is not shown: by its aliases it may be endless."""
    if not isinstance(node, str):
        return _EXPECTED[type(node)]
    return repr(node if len(node) <= MAX_QUOTED else node[:MAX_QUOTED] + "…")


def _parsed(text: str) -> Any:
    """Texts, in lists and maps.

    Raises:
        YAMLError, ValueError: it is no YAML.
    """
    _check_depth(text)
    node = yaml.load(text, _Loader)
    return "" if node is None else node


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".")


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


def _read_yaml(path: Path) -> Any:
    text = _read_text(path)
    try:
        return _parsed(text)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_reason(error)}. Correct it there.") from error


def _read_override(override: str) -> Any:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"Override {override!r} is not of the form key=value, e.g. learner.learning_rate=1e-5.")
    try:
        node = _parsed(value)
        if isinstance(node, str) and not value.lstrip().startswith(tuple("'\"|>!&")):
            node = value.strip()  # with its line ends, and what a file would take for a comment
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"Cannot read the override {_shown(override)}: {_reason(error)}.") from error
    return reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), node)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read, merge, type-check and validate. A text is taken as it is written: no number or truth value is made of it,
    and nothing is put in for `${…}`.

    Args:
        path: YAML file.
        overrides: `key=value` strings that win over the file, e.g. `rollout.num_actors=4`; the value is YAML too.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest name), wrong type, or values that do not fit.
    """
    merged = OmegaConf.structured(Config)
    layers = [(str(path), _read_yaml(Path(path))), *(("override", _read_override(each)) for each in overrides)]
    for source, layer in layers:
        try:
            merged = OmegaConf.merge(merged, _typed(layer, Config, ""))
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    validate(config)
    return config


def save_config(config: Config, path: Path) -> None:
    """Write the resolved tree as YAML that `load_config` reads back to an equal tree."""
    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
