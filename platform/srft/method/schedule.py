"""The hand-over from prior to transfer sensitivity: how much the prior weighs at each moment of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from srft.config import Schedule
from srft.method.histogram import MANTISSA_BITS, Histogram
from srft.method.sparsity import MergedStatistics

__all__ = ["AdaptiveWeight", "adaptive_weight", "change", "prior_weight"]


@overload
def prior_weight(schedule: Schedule, kappa: float, progress: float) -> float: ...
@overload
def prior_weight(schedule: Schedule, kappa: float, progress: np.ndarray) -> np.ndarray: ...
def prior_weight(schedule: Schedule, kappa: float, progress: float | np.ndarray) -> float | np.ndarray:
    """Share of the prior ``w(t)`` at progress t, never rising, 1 at the start.

    ========== ============================================== ===================
    schedule   w(t)                                           mean over the run
    ========== ============================================== ===================
    power      (1 - t)^kappa                                  1 / (1 + kappa)
    constant   1                                              1
    linear     1 - t, whatever kappa is                       1/2
    cosine     ((1 + cos(pi t)) / 2)^kappa                    1/2 at kappa = 1
    exponential (exp(-kappa t) - exp(-kappa)) / (1 - exp(-kappa)) about 1 / kappa
    step       1 while t < 1 / (1 + kappa), then 0            1 / (1 + kappa)
    ========== ============================================== ===================

    A larger kappa hands over earlier in every shape that it enters.

    Args:
        schedule: the shape.
        kappa: a positive number.
        progress: share of the run that is over, 0 to 1; a number, or an array of any shape.

    Returns:
        Weights from 0 to 1: a float for a number, an array of the same shape for an array.

    Raises:
        ValueError: the schedule is unknown, kappa is not positive and finite, or progress lies outside 0 to 1.
    """
    t = np.asarray(progress, dtype=np.float64)
    if not (kappa > 0 and np.isfinite(kappa)):
        raise ValueError(f"kappa is {kappa!r}; expected a positive number")
    if not np.all((t >= 0) & (t <= 1)):
        raise ValueError(f"progress is {progress!r}; expected 0 to 1, which is step / total_steps")
    match schedule:
        case "power":
            w = (1 - t) ** kappa
        case "constant":
            w = np.ones_like(t)
        case "linear":
            w = 1 - t
        case "cosine":
            w = (0.5 * (1 + np.cos(np.pi * t))) ** kappa
        case "exponential":
            w = (np.exp(-kappa * t) - np.exp(-kappa)) / -np.expm1(-kappa)
        case "step":
            w = np.where(t < 1 / (1 + kappa), 1.0, 0.0)
        case _:
            raise ValueError(f"schedule is {schedule!r}; expected power, constant, linear, cosine, exponential or step")
    w = np.clip(w, 0.0, 1.0)
    return float(w) if w.ndim == 0 else w


QUANTILES = 64
"""Magnitudes by which two histograms of a group are compared: the middles of so many equal shares of its elements."""


def change(before: MergedStatistics, after: MergedStatistics) -> float:
    """How far the transfer sensitivity has moved between two refreshes, in octaves: 0 for not at all, at most 1.

    Mean over all elements of the move of their group's quantiles on the logarithmic scale (the 1-Wasserstein distance), counted up to
    one octave, after the median move of all was taken out: a common factor, as of the loss, is no change. Computed in integers, so that
    it is the same on every machine.

    Args:
        before: the earlier statistics, merged over all workers.
        after: the later ones.

    Returns:
        The change. Groups without elements in either are passed over; 1 if no group is left.
    """
    moves: list[np.ndarray] = []
    sizes: list[int] = []
    for name in sorted(before.sketch.groups.keys() & after.sketch.groups.keys()):
        old, new = before.sketch.groups[name], after.sketch.groups[name]
        if old.total and new.total:
            moves.append(_quantile_bins(new) - _quantile_bins(old))
            sizes.append(new.total)
    if not moves:
        return 1.0
    octave = 1 << MANTISSA_BITS
    each, weights = np.stack(moves), np.array(sizes, np.int64)
    order = np.argsort(each, axis=None, kind="stable")
    passed = np.cumsum(np.repeat(weights, QUANTILES)[order])
    common = int(each.reshape(-1)[order][np.searchsorted(passed, (int(passed[-1]) + 1) // 2)])
    moved = (np.minimum(np.abs(each - common), octave).sum(axis=1) * weights).sum()
    return int(moved) / (octave * int(passed[-1]))


def _quantile_bins(histogram: Histogram) -> np.ndarray:
    # [QUANTILES] int64 bin numbers, which are 16 times the logarithm to base 2, linear inside an octave.
    below = np.cumsum(histogram.counts) * (2 * QUANTILES)
    return histogram.first + np.searchsorted(below, (2 * np.arange(QUANTILES, dtype=np.int64) + 1) * histogram.total)


@dataclass(frozen=True, kw_only=True)
class AdaptiveWeight:
    """The schedule that measures: the prior hands over as the transfer sensitivity settles.

    With d the :func:`change` between the last two refreshes, smoothed over refreshes (mean of the old mean and d), and peak the largest
    smoothed change so far, ``w = min(w before, (smoothed / peak)^kappa)``. It starts at 1, stays there
    until something has moved, never rises, and is a function of the merged
    statistics alone: the same on every worker that gets the same ones.
    """

    weight: float = 1.0
    """w(t), 0 to 1."""
    smoothed: float = 0.0
    """Smoothed change, octaves."""
    peak: float = 0.0
    """Largest smoothed change so far, octaves."""
    last: MergedStatistics | None = None
    """What the next statistics are compared with."""

    def after(self, statistics: MergedStatistics, kappa: float) -> AdaptiveWeight:
        """The schedule one refresh later.

        Args:
            statistics: merged over all workers, of a later step than the ones before.
            kappa: a positive number; a larger one hands over earlier.

        Returns:
            A new state.

        Raises:
            ValueError: kappa is not positive and finite, or the statistics are not later than the last.
        """
        if not (kappa > 0 and np.isfinite(kappa)):
            raise ValueError(f"kappa is {kappa!r}; expected a positive number")
        if self.last is None:
            return AdaptiveWeight(last=statistics)
        if statistics.step <= self.last.step:
            raise ValueError(f"statistics of step {statistics.step} follow those of step {self.last.step}; expected each once, in order")
        moved = change(self.last, statistics)
        smoothed = moved if self.peak == 0 else 0.5 * (self.smoothed + moved)
        peak = max(self.peak, smoothed)
        settled = (smoothed / peak) ** kappa if peak > 0 else 1.0
        return AdaptiveWeight(weight=min(self.weight, settled), smoothed=smoothed, peak=peak, last=statistics)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint.

        Returns:
            Numbers and bytes.
        """
        last = None if self.last is None else self.last.to_bytes()
        return {"weight": self.weight, "smoothed": self.smoothed, "peak": self.peak, "last": last}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> AdaptiveWeight:
        """Restore from a checkpoint.

        Args:
            state: what :meth:`state_dict` returned.

        Returns:
            The state.
        """
        last = None if state["last"] is None else MergedStatistics.from_bytes(state["last"])
        return AdaptiveWeight(weight=state["weight"], smoothed=state["smoothed"], peak=state["peak"], last=last)


def adaptive_weight(history: Iterable[MergedStatistics], kappa: float) -> float:
    """Share of the prior after a run's statistics so far.

    Args:
        history: merged statistics of every refresh, in order.
        kappa: a positive number; a larger one hands over earlier.

    Returns:
        The weight, 0 to 1; 1 before there are two.
    """
    state = AdaptiveWeight()
    for statistics in history:
        state = state.after(statistics, kappa)
    return state.weight
