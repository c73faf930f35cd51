"""Typed search spaces over the dotted keys of a configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from srft.config import ConfigError, TrainConfig
from srft.settings import from_flat

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Choice", "Dimension", "Integer", "LogUniform", "Point", "Space", "Uniform", "parse_space", "srft_space", "wide_space"]

Point = dict[str, Any]
"""Value by dotted key."""


@dataclass(frozen=True)
class Choice:
    """One of several values, each as likely."""

    values: tuple[Any, ...]

    def sample(self, rng: np.random.Generator) -> Any:
        """One value.

        Args:
            rng: source of randomness.

        Returns:
            A member of ``values``.
        """
        return self.values[int(rng.integers(len(self.values)))]

    def extremes(self) -> Sequence[Any]:
        """Values whose validity implies that of all others.

        Returns:
            All values.
        """
        return self.values

    def at(self, position: float) -> Any:
        """The value at a place of the unit interval.

        Args:
            position: in ``[0, 1)``.

        Returns:
            Members of ``values`` in turn, each on an equal share of the interval.
        """
        return self.values[int(position * len(self.values))]

    def levels(self, count: int) -> Sequence[Any]:
        """Values for a grid.

        Args:
            count: not used: all values are.

        Returns:
            ``values``.
        """
        return self.values


@dataclass(frozen=True)
class Uniform:
    """A number between two bounds."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator) -> float:
        """One value.

        Args:
            rng: source of randomness.

        Returns:
            Uniform in ``[low, high)``.
        """
        return float(rng.uniform(self.low, self.high))

    def extremes(self) -> Sequence[Any]:
        """Values whose validity implies that of all others.

        Returns:
            Both bounds.
        """
        return self.low, self.high

    def at(self, position: float) -> float:
        """The value at a place of the unit interval.

        Args:
            position: in ``[0, 1]``.

        Returns:
            A number in ``[low, high]``.
        """
        return self.low + position * (self.high - self.low)

    def levels(self, count: int) -> Sequence[Any]:
        """Values for a grid.

        Args:
            count: how many.

        Returns:
            Evenly spaced from bound to bound.
        """
        return [self.at(i / max(1, count - 1)) for i in range(count)]


@dataclass(frozen=True)
class LogUniform:
    """A positive number whose logarithm is uniform between those of two bounds."""

    low: float
    high: float

    def sample(self, rng: np.random.Generator) -> float:
        """One value, rounded to three significant digits so that tables stay readable.

        Args:
            rng: source of randomness.

        Returns:
            A number in ``[low, high]``.
        """
        return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))

    def extremes(self) -> Sequence[Any]:
        """Values whose validity implies that of all others.

        Returns:
            Both bounds.
        """
        return self.low, self.high

    def at(self, position: float) -> float:
        """The value at a place of the unit interval, rounded as :meth:`sample` does.

        Args:
            position: in ``[0, 1]``.

        Returns:
            A number in ``[low, high]``.
        """
        return self.rounded(self.low * (self.high / self.low) ** position)

    def rounded(self, value: float) -> float:
        """Three significant digits, inside the bounds.

        Args:
            value: a number.

        Returns:
            The nearest such number.
        """
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def levels(self, count: int) -> Sequence[Any]:
        """Values for a grid.

        Args:
            count: how many.

        Returns:
            From bound to bound, each the same multiple of the one before.
        """
        return [self.at(i / max(1, count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Integer:
    """A whole number between two bounds, both included."""

    low: int
    high: int

    def sample(self, rng: np.random.Generator) -> int:
        """One value.

        Args:
            rng: source of randomness.

        Returns:
            Uniform in ``low..high``.
        """
        return int(rng.integers(self.low, self.high + 1))

    def extremes(self) -> Sequence[Any]:
        """Values whose validity implies that of all others.

        Returns:
            Both bounds.
        """
        return self.low, self.high

    def at(self, position: float) -> int:
        """The value at a place of the unit interval.

        Args:
            position: in ``[0, 1)``.

        Returns:
            Whole numbers in turn, each on an equal share of the interval.
        """
        return self.low + int(position * (self.high - self.low + 1))

    def levels(self, count: int) -> Sequence[Any]:
        """Values for a grid.

        Args:
            count: at most so many.

        Returns:
            Evenly spaced from bound to bound.
        """
        return sorted({round(self.low + i * (self.high - self.low) / max(1, count - 1)) for i in range(count)})


Dimension = Choice | Uniform | LogUniform | Integer


@dataclass(frozen=True)
class Space:
    """What a study varies: one dimension per dotted key of the configuration."""

    dimensions: Mapping[str, Dimension]

    def validate(self, base: TrainConfig) -> None:
        """Refuse a space that could draw an invalid configuration.

        Args:
            base: the configuration whose keys the dimensions replace.

        Raises:
            ConfigError: a key is unknown, a dimension is empty or its bounds are reversed, or a value is out of range.
        """
        for key, dimension in self.dimensions.items():
            source = f"search space, {key}"
            if isinstance(dimension, Choice):
                if not dimension.values:
                    raise ConfigError(f"{source}: no values to choose from; give at least one")
            else:
                low_limit = 0.0 if isinstance(dimension, LogUniform) else -math.inf
                if not low_limit < dimension.low < dimension.high < math.inf:
                    raise ConfigError(
                        f"{source}: {type(dimension).__name__}({dimension.low}, {dimension.high}); "
                        f"expected finite bounds, the lower below the upper{' and positive' if low_limit == 0.0 else ''}"
                    )
            inside = () if isinstance(dimension, Choice) else (dimension.at(0.37),)
            for value in (*dimension.extremes(), *inside):
                from_flat({key: value}, base, source=source)

    def sample(self, rng: np.random.Generator) -> Point:
        """One point.

        Args:
            rng: source of randomness.

        Returns:
            Value by dotted key, in the order of the dimensions.
        """
        return {key: dimension.sample(rng) for key, dimension in self.dimensions.items()}


def parse_space(settings: Sequence[str]) -> Space:
    """A space from the command line.

    Args:
        settings: ``key=a,b,c`` for a choice of numbers, words or JSON lists, ``key=low..high`` for a number or, if both bounds are whole, a
            whole number, ``key=low..high:log`` for a number whose logarithm is uniform.

    Returns:
        The space, to be validated with a base.

    Raises:
        ConfigError: a setting is none of these.
    """
    dimensions: dict[str, Dimension] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not text:
            raise ConfigError(f"--vary {setting!r}: expected key=a,b,c or key=low..high or key=low..high:log")
        if key in dimensions:
            raise ConfigError(f"--vary: {key} is given twice; give all its values at once, {key}=a,b,c")
        if ".." in text and "," not in text:
            span, _, log = text.partition(":")
            try:
                low, high = (json.loads(bound) for bound in span.split("..", 1))
            except json.JSONDecodeError:
                low = high = None
            if not isinstance(low, int | float) or not isinstance(high, int | float) or log not in ("", "log"):
                raise ConfigError(f"--vary {setting!r}: expected two numbers, key=low..high or key=low..high:log")
            whole = isinstance(low, int) and isinstance(high, int)
            dimensions[key] = LogUniform(low, high) if log else Integer(low, high) if whole else Uniform(low, high)
            continue
        try:
            values = json.loads(f"[{text}]")
        except json.JSONDecodeError:
            values = text.split(",")
        dimensions[key] = Choice(tuple(tuple(value) if isinstance(value, list) else value for value in values))
    return Space(dimensions)


def srft_space() -> Space:
    """The method's own settings and the learning rate.

    Returns:
        K, kappa, schedule, strength of the tangent-space term and of giving back, and the peak learning rate.
    """
    return Space(
        {
            "srft.rank": Choice((4, 8, 16, 32)),
            "srft.kappa": LogUniform(0.25, 4.0),
            "srft.schedule": Choice(("power", "cosine", "exponential")),
            "srft.prior_strength": LogUniform(1.0, 10_000.0),
            "srft.give_back": LogUniform(0.5, 20.0),
            "optim.lr": LogUniform(1e-4, 1e-3),
        }
    )


def wide_space() -> Space:
    """Everything about the method that a larger study may ask about.

    Returns:
        :func:`srft_space`, and the auxiliary stream's share, the damping and its range, the term's form, the paradigm and the weight decay.
    """
    return Space(
        {
            **srft_space().dimensions,
            "srft.aux_share": LogUniform(0.03, 1.0),
            "srft.damping_strength": Uniform(0.0, 1.0),
            "srft.damping_range": Choice(((0.25, 0.65), (0.0, 0.5), (0.25, 1.0), (0.5, 1.0))),
            "srft.mode": Choice(("penalty", "proximal", "projection")),
            "paradigm": Choice(("srft", "srft-lora", "srft-adapter", "srft-prompt")),
            "optim.weight_decay": LogUniform(1e-5, 1e-2),
        }
    )
