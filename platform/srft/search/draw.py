"""How the points of a study are drawn: known from the start, proposed from what earlier trials showed, or perturbed. Pure functions."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from srft.config import ConfigError
from srft.search.front import at_best
from srft.search.space import Choice, Dimension, Integer, LogUniform, Point, Space

__all__ = ["Observation", "grid", "perturb", "propose", "random", "sobol"]


_FEW = 10_000
"""Points of a space that can be listed."""
ObservedState = Literal["finished", "stopped", "running", "failed"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a trial showed, for :func:`propose`."""

    point: Mapping[str, Any]
    state: ObservedState
    values: tuple[float, ...] = ()
    """Of a finished trial: one per objective, larger is better."""
    curve: tuple[float, ...] = ()
    """First objective after each epoch."""

    @staticmethod
    def of(point: Mapping[str, Any], state: ObservedState, curve: Sequence[float], second: Sequence[float] | None = None) -> Observation:
        """From what was measured after each epoch.

        Args:
            point: of the trial.
            state: of the trial.
            curve: first objective.
            second: second objective, if there is one; epochs of which it is not known may be lacking at the end.

        Returns:
            The observation; a finished trial's values are those at the epoch that is best by the first objective.
        """
        values: tuple[float, ...] = ()
        if state == "finished":
            values = at_best(curve, second) if second is not None else at_best(curve, ())[:1]
        return Observation(point=point, state=state, values=values, curve=tuple(curve))


def random(space: Space, count: int, seed: int) -> list[Point]:
    """Independent points; none twice while the space has others.

    Args:
        space: what varies.
        count: of points.
        seed: of the draws.

    Returns:
        ``count`` points; the first ones do not depend on the count.
    """
    rng = np.random.default_rng(seed)
    points: list[Point] = []
    for _ in range(count):
        point = space.sample(rng)
        for _ in range(20):  # A small space may hold fewer points than are asked for.
            if point not in points:
                break
            point = space.sample(rng)
        if point in points and (others := [p for p in _all(space) if p not in points]):
            point = others[int(rng.integers(len(others)))]
        points.append(point)
    return points


def _all(space: Space) -> list[Point]:
    # Of a space of few points; of any other none.
    sizes = [
        len(d.values) if isinstance(d, Choice) else d.high - d.low + 1 for d in space.dimensions.values() if isinstance(d, Choice | Integer)
    ]
    few = len(sizes) == len(space.dimensions) and math.prod(sizes) <= _FEW
    return grid(space, max(sizes, default=1)) if few else []


def sobol(space: Space, count: int, seed: int) -> list[Point]:
    """Points that fill the space evenly: a scrambled Sobol sequence (scipy.stats.qmc).

    Args:
        space: what varies.
        count: of points; powers of two are spread most evenly.
        seed: of the scrambling.

    Returns:
        ``count`` points; the first ones do not depend on the count.
    """
    from scipy.stats import qmc

    if not count:
        return []
    generator = qmc.Sobol(len(space.dimensions), rng=np.random.default_rng(seed))
    rows = generator.random_base2(math.ceil(math.log2(count)))[:count]
    return [{key: dimension.at(float(u)) for (key, dimension), u in zip(space.dimensions.items(), row, strict=True)} for row in rows]


def grid(space: Space, levels: int) -> list[Point]:
    """Every combination of values.

    Args:
        space: what varies.
        levels: values of a continuous dimension.

    Returns:
        The points; the last dimension varies fastest.
    """
    axes = [dimension.levels(levels) for dimension in space.dimensions.values()]
    return [dict(zip(space.dimensions, values, strict=True)) for values in itertools.product(*axes)]


def propose(space: Space, seen: Sequence[Observation], *, seed: int, objectives: int = 1, startup: int = 6) -> Point:
    """The next point by the tree-structured Parzen estimator (Bergstra et al. 2011; Optuna's, multivariate, for one or more objectives).

    Nothing is kept between calls: the proposal follows from what was seen and the seed.

    Args:
        space: what varies.
        seen: earlier trials, this study's and others'; those whose point is not of this space are passed over.
        seed: of this proposal.
        objectives: values of each finished trial.
        startup: finished or stopped trials before which points are random.

    Returns:
        A point.

    Raises:
        ConfigError: Optuna is missing.
    """
    try:
        import optuna
        from optuna.trial import TrialState
    except ImportError:
        raise ConfigError("search tpe needs Optuna; run uv sync, or uv pip install 'optuna>=5'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "running": TrialState.RUNNING, "failed": TrialState.FAIL}
    axes = {key: _Axis(dimension) for key, dimension in space.dimensions.items()}
    distributions = {key: axis.distribution() for key, axis in axes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That these options are experimental.
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup)
        study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
        for one in seen:
            params = {key: axis.encode(one.point.get(key)) for key, axis in axes.items()}
            if any(value is None for value in params.values()):
                continue
            state = states[one.state]
            if one.state == "finished" and any(map(math.isnan, one.values)):
                state = TrialState.FAIL
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    params=params,
                    distributions=distributions,
                    values=list(one.values) if state == TrialState.COMPLETE else None,
                    intermediate_values={i: v for i, v in enumerate(one.curve) if not math.isnan(v)} if objectives == 1 else None,
                )
            )
        asked = study.ask(distributions)
    return {key: axis.decode(asked.params[key]) for key, axis in axes.items()}


def perturb(space: Space, point: Mapping[str, Any], rng: np.random.Generator, *, resample: float = 0.25) -> Point:
    """A point near another, as population based training explores (Jaderberg et al. 2017).

    Args:
        space: what varies.
        point: of the space.
        rng: source of randomness.
        resample: chance of each value to be drawn anew; else numbers are multiplied by 0.8 or 1.2, inside their bounds, ordered choices
            move to a neighbour and words stay.

    Returns:
        The new point.
    """
    new: Point = {}
    for key, dimension in space.dimensions.items():
        value = point[key]
        afresh, factor = rng.random() < resample, (0.8, 1.2)[int(rng.integers(2))]
        if afresh:
            new[key] = dimension.sample(rng)
        elif isinstance(dimension, Choice):
            ladder = _ladder(dimension)
            place = ladder.index(_plain(value)) + (1 if factor > 1 else -1) if ladder else 0
            new[key] = ladder[min(max(place, 0), len(ladder) - 1)] if ladder else value
        elif isinstance(dimension, Integer):
            step = round(value * factor) or dimension.low
            step = step if step != value else value + (1 if factor > 1 else -1)
            new[key] = min(max(step, dimension.low), dimension.high)
        else:
            moved = min(max(value * factor, dimension.low), dimension.high)
            new[key] = dimension.rounded(moved) if isinstance(dimension, LogUniform) else moved
    return new


def _ladder(dimension: Choice) -> list[Any]:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in dimension.values)
    return sorted(dimension.values) if numbers else []


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # As JSON returns it.


class _Axis:
    """A dimension as Optuna knows it: choices by position, of numbers in their order."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension
        self.ladder = (_ladder(dimension) or list(dimension.values)) if isinstance(dimension, Choice) else []

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        d = self.dimension
        if isinstance(d, Choice):
            last = len(self.ladder) - 1
            return IntDistribution(0, last) if _ladder(d) else CategoricalDistribution(tuple(range(last + 1)))
        if isinstance(d, Integer):
            return IntDistribution(d.low, d.high)
        return FloatDistribution(d.low, d.high, log=isinstance(d, LogUniform))

    def encode(self, value: Any) -> Any:
        # None if the value is not of the dimension.
        if isinstance(self.dimension, Choice):
            return self.ladder.index(_plain(value)) if _plain(value) in self.ladder else None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and self.dimension.low <= value <= self.dimension.high else None

    def decode(self, value: Any) -> Any:
        if isinstance(self.dimension, Choice):
            return self.ladder[value]
        return self.dimension.rounded(value) if isinstance(self.dimension, LogUniform) else value
