"""What every setting of a run is held to, and how a wrong one is told."""

from __future__ import annotations

import functools
import sys
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = ["ConfigError", "check", "check_kinds", "is_number", "kinds_of"]


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; the message names key, value and remedy."""


def check(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuse a setting unless a condition holds.

    Args:
        condition: what must hold.
        key: dotted name of the setting.
        value: what it is.
        expected: what it should be, in words.

    Raises:
        ConfigError: it does not.
    """
    if not condition:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


@functools.cache
def kinds_of(kind: type) -> dict[str, Any]:
    """What the settings of a part of the configuration are.

    Args:
        kind: one of the dataclasses of a run.

    Returns:
        Annotations by name of the field.
    """
    return get_type_hints(kind)


def is_number(value: object) -> bool:
    """Whether a value can be a setting of type float.

    Args:
        value: anything.

    Returns:
        True for finite numbers within its range.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_kinds(config: Any, prefix: str) -> None:
    """Refuse a part of the configuration that has a setting of the wrong kind; ranges can then be compared.

    Args:
        config: one of the dataclasses of a run; a setting that is not what its annotation says is a ConfigError.
        prefix: of its settings' dotted names.
    """
    for name, kind in kinds_of(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal:
            right, expected = value in get_args(kind), f"one of {get_args(kind)}"
        elif kind is int:
            right, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
        elif kind is float:
            right, expected = is_number(value), "a finite number"
        elif kind == tuple[float, float]:
            right, expected = isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value)), "two finite numbers"
        else:
            right, expected = isinstance(value, kind), {bool: "true or false", str: "a word"}.get(kind) or f"the dataclass {kind.__name__}"
        check(right, f"{prefix}{name}", value, expected)
