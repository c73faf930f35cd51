"""The hand-over from prior to transfer sensitivity: how much the prior weighs at each moment of a run."""

from __future__ import annotations

from typing import overload

import numpy as np

from srft.config import Schedule

__all__ = ["prior_weight"]


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
