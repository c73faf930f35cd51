"""Configurations from the outside: dotted keys, ``key=value`` on a command line, JSON files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srft.checks import is_number, kinds_of
from srft.config import BEFORE, ConfigError, TrainConfig, to_flat

__all__ = ["from_flat", "load", "parse_settings", "recorded"]


def from_flat(values: Mapping[str, Any], base: TrainConfig | None = None, *, source: str = "configuration") -> TrainConfig:
    """A configuration from dotted keys.

    Args:
        values: dotted keys and their values; keys left out keep the base's value.
        base: what to start from; the defaults when None.
        source: where the values come from, for error messages.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: a key is unknown, a value has the wrong type or is out of range.
    """
    base = base or TrainConfig()
    known = to_flat(base)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{source}: unknown key {', '.join(unknown)}; known keys are {', '.join(sorted(known))}")

    def build(current: Any, prefix: str) -> Any:
        changes: dict[str, Any] = {}
        kinds = kinds_of(type(current))
        for f in dataclasses.fields(current):
            key = f"{prefix}.{f.name}" if prefix else f.name
            value = getattr(current, f.name)
            if dataclasses.is_dataclass(value):
                if any(k.startswith(f"{key}.") for k in values):
                    changes[f.name] = build(value, key)
            elif key in values:
                changes[f.name] = _cast(values[key], kinds[f.name])
        return dataclasses.replace(current, **changes)

    try:
        return build(base, "")
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def recorded(values: Mapping[str, Any], *, source: str) -> TrainConfig:
    """The configuration that a run, a study or a checkpoint wrote down.

    Args:
        values: dotted keys and their values; settings that did not exist yet say what was done without them.
        source: where they come from, for error messages.

    Returns:
        The validated configuration; what cannot be is a ConfigError, as of :func:`from_flat`.
    """
    return from_flat({**BEFORE, **values}, source=source)


def _cast(value: Any, kind: Any) -> Any:
    # JSON and searches have one kind of number, and lists; what is wrong is left as it is, and refused with its name.
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and is_number(value):
        return float(value)
    if kind == tuple[float, float] and isinstance(value, list | tuple):
        return tuple(_cast(part, float) for part in value)
    return value


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Settings of a command line.

    Args:
        settings: ``key=value``; values are JSON, or words.

    Returns:
        Dotted keys and their values, not yet checked: :func:`from_flat` does that, of these and of other options together.

    Raises:
        ConfigError: a setting has no ``=``.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r} has no '='; expected key=value, such as optim.lr=1e-4")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return values


def load(path: str | Path, base: TrainConfig | None = None) -> TrainConfig:
    """Read a configuration written as flat JSON.

    Args:
        path: the JSON file.
        base: what keys left out are taken from; the defaults when None.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: the file is missing, is not JSON, or holds an unknown key or a value out of range.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with json.dump(srft.config.to_flat(config), file)") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; expected one JSON object of dotted keys")
    return from_flat(values, base, source=str(path))
