"""What the value of a single field may be, written into its type: `fps: Positive = 2.0`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_type_hints

from museg_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rule:
    """Of one field."""

    holds: Callable[[Any], bool]
    words: str
    """What follows `KEY is VALUE; it `."""


def one_of(*allowed: object) -> Rule:
    return Rule(lambda value: value in allowed, f"may be one of {', '.join(map(repr, allowed))}")


def at_least(least: int) -> Rule:
    """Of a whole number."""
    return Rule(lambda value: value >= least, f"must be at least {least}")


def number_from(least: int) -> Rule:
    """null is no number, and has no bound."""
    return Rule(lambda value: value is None or least <= value < math.inf, f"must be a number of at least {least}")


SHARE = Rule(lambda value: value is None or 0.0 <= value <= 1.0, "must lie between 0 and 1")
Count = Annotated[int, at_least(0)]
CountFrom1 = Annotated[int, at_least(1)]
Amount = Annotated[float, number_from(0)]
Positive = Annotated[float, Rule(lambda value: 0.0 < value < math.inf, "must be above 0, and finite")]
Finite = Annotated[float, Rule(math.isfinite, "must be a finite number")]
Share = Annotated[float, SHARE]


def check_fields(tree: Any, where: str = "") -> None:
    """Check every field of a dataclass, and of those in it, by the rules in its type.

    Raises:
        ConfigError: names the key, its value, and what it may be.
    """
    for name, kind in get_type_hints(type(tree), include_extras=True).items():
        value = getattr(tree, name)
        for rule in getattr(kind, "__metadata__", ()):
            if not rule.holds(value):
                raise ConfigError(f"{where}{name} is {value!r}; it {rule.words}.")
        if is_dataclass(value):
            check_fields(value, f"{where}{name}.")
        for index, each in enumerate(value if isinstance(value, list) else ()):
            check_fields(each, f"{where}{name}[{index}].")
