"""Trials of a study beside each other: what is best at both ends, and which settings mattered. Pure functions of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srft.search.record import TrialResult

__all__ = ["FEWEST", "STABILITY", "Importance", "importance", "numbers", "plasticity_and_stability", "varied"]

STABILITY = "source/success_auc"
"""What was not forgotten: success of the RGB stream alone on source sequences."""
FEWEST = 8
"""Drawn trials from which on importances are estimated."""
_SHUFFLES = 10


def plasticity_and_stability(result: TrialResult, metric: str, stability: str = STABILITY) -> tuple[float, float]:
    """What a trial learned and what it kept, at its best epoch.

    Args:
        result: of a trial.
        metric: of the study.
        stability: its second measure.

    Returns:
        Value of both; not a number without a finished epoch.
    """
    return result.at_best(metric, stability)


def varied(found: Sequence[TrialResult]) -> list[str]:
    """Settings in which drawn trials differ, or all that were drawn if there is one trial alone; but for seeds.

    Args:
        found: of a study.

    Returns:
        Dotted keys, sorted.
    """
    points = [result.trial.point for result in found if not result.trial.fixed]
    alone = len(points) == 1
    differs = lambda key, value: alone or any(value != other.get(key) for other in points)
    return sorted({key for point in points for key, value in point.items() if key != "seed" and differs(key, value)})


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much a setting matters for the metric among the drawn trials."""

    key: str
    share: float
    """Of all settings' importance, 0 to 1."""
    correlation: float
    """Rank correlation with the metric; not a number for settings that are words."""


def importance(found: Sequence[TrialResult], metric: str) -> list[Importance]:
    """Importance of settings: how much worse a random forest predicts the metric when a setting is shuffled over the trials.

    Args:
        found: of a study; fixed trials are left out.
        metric: what is predicted, each trial's best value.

    Returns:
        Largest share first; empty with fewer than :data:`FEWEST` trials, or if no setting or the metric does not vary.
    """
    drawn = [(r, plasticity_and_stability(r, metric)[0]) for r in found if not r.trial.fixed]
    drawn = [(r, value) for r, value in drawn if not math.isnan(value)]
    keys, values = varied([r for r, _ in drawn]), np.array([value for _, value in drawn])
    if len(drawn) < FEWEST or not keys or np.ptp(values) == 0:
        return []
    from scipy.stats import spearmanr
    from sklearn.ensemble import RandomForestRegressor

    columns, correlations = [], {}
    for key in keys:
        column, words = numbers([r.trial.point.get(key) for r, _ in drawn])
        columns.append(column)
        correlations[key] = math.nan if words or np.ptp(column) == 0 else float(spearmanr(column, values).statistic)
    table = np.stack(columns, 1)
    forest = RandomForestRegressor(n_estimators=100, min_samples_leaf=2, random_state=0).fit(table, values)
    rng = np.random.default_rng(0)
    shuffled = np.repeat(table[None], len(keys) * _SHUFFLES, 0).reshape(len(keys), _SHUFFLES, *table.shape)
    for i in range(len(keys)):
        for copy in shuffled[i]:
            copy[:, i] = rng.permutation(copy[:, i])
    error = (forest.predict(shuffled.reshape(-1, len(keys))).reshape(len(keys), -1) - np.tile(values, _SHUFFLES)) ** 2
    raw = np.maximum(error.mean(1) - ((forest.predict(table) - values) ** 2).mean(), 0.0)
    total = raw.sum() or 1.0
    shares = [Importance(key=key, share=float(x / total), correlation=correlations[key]) for key, x in zip(keys, raw, strict=True)]
    return sorted(shares, key=lambda one: -one.share)


def numbers(values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Values of a setting as numbers: ranges by their middles if these differ, words by their place in the alphabet.

    Args:
        values: of some trials.

    Returns:
        ``[N]``, and the words that they are places of; none for numbers.
    """
    middles = [sum(v) / len(v) if isinstance(v, list | tuple) else v for v in values]
    words = sorted({str(v) for v in values})
    distinct = len(set(middles)) == len(words) or not any(isinstance(v, list | tuple) for v in values)
    if distinct and all(isinstance(v, int | float) and not isinstance(v, bool) for v in middles):
        return np.array(middles, np.float64), []
    return np.array([words.index(str(v)) for v in values], np.float64), words
