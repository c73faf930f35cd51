"""One-pass kits in their own words, row by row, with nothing vectorized."""

from __future__ import annotations

import math

EPS = 2.220446049250313e-16


def _overlap(a, b) -> float:
    """Inclusive pixels: right = left + width - 1."""
    width = max(0.0, min(a[0] + a[2] - 1, b[0] + b[2] - 1) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[1] + a[3] - 1, b[1] + b[3] - 1) - max(a[1], b[1]) + 1)
    return width * height / (a[2] * a[3] + b[2] * b[3] - width * height)


def _error(a, b, size=(1.0, 1.0)) -> float:
    """Distance of the centres left + (width - 1) / 2, each divided by the size first."""
    x = (a[0] + (a[2] - 1) / 2) / size[0] - (b[0] + (b[2] - 1) / 2) / size[0]
    y = (a[1] + (a[3] - 1) / 2) / size[1] - (b[1] + (b[3] - 1) / 2) / size[1]
    return math.sqrt(x * x + y * y)


def _curves(overlaps, errors, normalized, divisor):
    return (
        [sum(o > k * 0.05 for o in overlaps) / divisor for k in range(21)],
        [sum(e <= k for e in errors) / divisor for k in range(51)],
        [sum(e <= k * 0.01 for e in normalized) / divisor for k in range(51)],
    )


def visevent_sequence(result, truth, absent):
    """Curves of one sequence: success, precision, normalized precision."""
    result = [list(row) for row in result[: len(truth)]]
    for i in range(1, len(truth)):
        row = result[i]
        if (any(math.isnan(v) for v in row) or row[2] <= 0 or row[3] <= 0) and not any(math.isnan(v) for v in truth[i]):
            result[i] = list(result[i - 1])
    result[0] = list(truth[0])
    kept = [i for i in range(len(truth)) if absent[i] != 1]
    overlaps, errors, normalized = [], [], []
    for i in kept:
        if sum(v > 0 for v in truth[i]) == 4:
            overlaps.append(_overlap(result[i], truth[i]))
            errors.append(_error(result[i], truth[i]))
            normalized.append(_error(result[i], truth[i], truth[i][2:]))
        else:
            overlaps.append(-1.0)
            errors.append(-1.0)
            normalized.append(-1.0)
    return _curves(overlaps, errors, normalized, len(truth) + EPS)


def visevent_scores(curves):
    """SR, PR and NPR over sequences; rows that sum to nothing are deleted first."""
    means = []
    for kind in range(3):
        table = [c[kind] for c in curves if sum(c[kind]) > EPS]
        means.append([sum(column) / len(table) for column in zip(*table, strict=True)])
    return {"success_auc": sum(means[0]) / 21, "precision_20": means[1][20], "normalized_precision_20": means[2][20]}


def fe108_sequence(result, truth):
    """Curves of one sequence; the rows of the result are numbers and no size is negative."""
    result = [list(row) for row in result]
    for i in range(1, len(result)):
        if (result[i][2] == 0 or result[i][3] == 0) and i < len(truth):
            result[i] = list(result[i - 1])
    result = result[: len(truth)] + [[0.0] * 4 for _ in range(len(truth) - len(result))]
    result[0] = list(truth[0])
    overlaps, errors, normalized = [], [], []
    for r, t in zip(result, truth, strict=True):
        valid = t[2] > 0 and t[3] > 0
        overlaps.append(_overlap(r, t) if valid else -1.0)
        errors.append(_error(r, t) if valid else math.inf)
        normalized.append(_error(r, t, t[2:]) if valid else -1.0)
    return _curves(overlaps, errors, normalized, len(truth))


def fe108_scores(curves):
    """SR, PR and NPR over sequences."""
    means = [[sum(column) / len(curves) for column in zip(*(c[kind] for c in curves), strict=True)] for kind in range(3)]
    return {"success_auc": sum(means[0]) / 21, "precision_20": means[1][20], "normalized_precision_20": means[2][20]}
