"""Measures frame by frame, by counting."""

from __future__ import annotations

import math


def iou(p, g) -> float:
    """Area both boxes cover over the area any covers."""
    width = min(p[0] + p[2], g[0] + g[2]) - max(p[0], g[0])
    height = min(p[1] + p[3], g[1] + g[3]) - max(p[1], g[1])
    if min(p[2], p[3], g[2], g[3]) <= 0 or width <= 0 or height <= 0 or any(math.isnan(v) for v in (*p, *g)):
        return 0.0
    return width * height / (p[2] * p[3] + g[2] * g[3] - width * height)


def center_error(p, g, scale=(1.0, 1.0)) -> float:
    """Distance of the centres, x and y divided by the scale."""
    dx = (p[0] + p[2] / 2) - (g[0] + g[2] / 2)
    dy = (p[1] + p[3] / 2) - (g[1] + g[3] / 2)
    return math.sqrt((dx / scale[0]) ** 2 + (dy / scale[1]) ** 2)


def measure(results) -> dict[str, float]:
    """Success AUC and both precisions: visible frames after the first, mean over sequences."""
    auc, precise, normalized = [], [], []
    for predicted, truth, absent in results:
        frames = [(p, g) for t, (p, g, a) in enumerate(zip(predicted, truth, absent, strict=True)) if t > 0 and not a]
        if not frames:
            continue
        n = len(frames)
        auc.append(sum(sum(iou(p, g) > k / 20 for p, g in frames) / n for k in range(21)) / 21)
        precise.append(sum(center_error(p, g) <= 20 for p, g in frames) / n)
        normalized.append(sum(center_error(p, g, g[2:]) <= 0.2 for p, g in frames) / n)
    return {
        "success_auc": sum(auc) / len(auc),
        "precision_20": sum(precise) / len(precise),
        "normalized_precision_20": sum(normalized) / len(normalized),
    }
