"""Depth and thermal frames as images, pixel by pixel: slow, and plain enough to be checked by reading."""

from __future__ import annotations

import statistics

import numpy as np


def levels(depth_mm: np.ndarray) -> np.ndarray:
    """Levels 0..255 before rounding, [H, W] float64."""
    values = [int(v) for v in depth_mm.ravel()]
    median = statistics.median(values)
    if median == 0 and any(values):
        median = statistics.median([v for v in values if v > 0])
    limit = int(min(3 * median, 10000))
    clipped = [v if v < limit else limit for v in values]
    near, far = min(clipped), max(clipped)
    out = [255 * (v - near) / (far - near) if far > near else 0.0 for v in clipped]
    return np.array(out).reshape(depth_mm.shape)


def jet(level: float) -> tuple[float, float, float]:
    """Red, green, blue of MATLAB's jet at a level 0..255, each 0..255: trapezoids around 3/4, 1/2 and 1/4."""
    x = level / 255
    red, green, blue = (min(max(1.5 - abs(4 * x - center), 0), 1) for center in (3, 2, 1))
    return 255 * red, 255 * green, 255 * blue


def thermal(counts: np.ndarray, low: float, high: float) -> np.ndarray:
    """Levels [H, W] of counts between two counts, before rounding."""
    return np.array([[min(max(255 * (float(v) - low) / (high - low), 0), 255) for v in row] for row in counts])
