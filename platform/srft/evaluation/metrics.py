"""Measures of one-pass evaluation as free functions on arrays. Boxes are ltwh in pixels, continuous (no +1 pixel).

A prediction that is not a number, or a box without area, counts as a failure: overlap 0, an error that is within no threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "NORMALIZED_THRESHOLDS",
    "PRECISION_THRESHOLDS",
    "SUCCESS_THRESHOLDS",
    "Measures",
    "center_error",
    "iou",
    "measure",
    "normalized_center_error",
    "precision_at",
    "precision_curve",
    "success_auc",
    "success_curve",
]

SUCCESS_THRESHOLDS = np.linspace(0, 1, 21)
"""Overlaps 0, 0.05, ..., 1."""
PRECISION_THRESHOLDS = np.arange(51, dtype=np.float64)
"""Centre errors 0, 1, ..., 50 pixels."""
NORMALIZED_THRESHOLDS = np.arange(51) / 100
"""Centre errors 0, 0.01, ..., 0.5 target sizes."""


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of paired boxes, ``|P and G| / (|P| + |G| - |P and G|)``.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truth: ``[T, 4]`` ltwh.

    Returns:
        ``[T]`` in [0, 1]; 0 where a box has no area or is not a number.
    """
    low = np.maximum(predicted[:, :2], truth[:, :2])
    high = np.minimum(predicted[:, :2] + predicted[:, 2:], truth[:, :2] + truth[:, 2:])
    inner = np.clip(high - low, 0, None).prod(1)
    union = np.clip(predicted[:, 2:], 0, None).prod(1) + np.clip(truth[:, 2:], 0, None).prod(1) - inner
    return np.divide(inner, union, out=np.zeros_like(union), where=union > 0)


def _center_offset(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return (predicted[:, :2] + predicted[:, 2:] / 2) - (truth[:, :2] + truth[:, 2:] / 2)


def center_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance of the centres of paired boxes.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truth: ``[T, 4]`` ltwh.

    Returns:
        ``[T]`` pixels; NaN where a box is not a number, which no threshold admits.
    """
    return np.hypot(*_center_offset(predicted, truth).T)


def normalized_center_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of the centres with x counted in target widths and y in target heights.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truth: ``[T, 4]`` ltwh.

    Returns:
        ``[T]`` in target sizes; infinite where the groundtruth has no width or height.
    """
    size = truth[:, 2:]
    offset = np.divide(_center_offset(predicted, truth), size, out=np.full(size.shape, np.inf), where=size > 0)
    return np.hypot(*offset.T)


def success_curve(overlaps: np.ndarray, thresholds: np.ndarray = SUCCESS_THRESHOLDS) -> np.ndarray:
    """Share of frames whose overlap exceeds each threshold, strictly; zeros when there are no frames.

    Args:
        overlaps: ``[T]``.
        thresholds: ``[K]``.

    Returns:
        ``[K]`` in [0, 1]. A perfect tracker has 1 everywhere but at threshold 1, which nothing exceeds.
    """
    return (overlaps[None] > thresholds[:, None]).mean(1) if len(overlaps) else np.zeros(len(thresholds))


def success_auc(overlaps: np.ndarray) -> float:
    """Plain mean of the success curve over its 21 thresholds (no trapezoids), so at most 20/21 = 0.952.

    Args:
        overlaps: ``[T]``.

    Returns:
        The mean; 0 when there are no frames.
    """
    return float(success_curve(overlaps).mean())


def precision_curve(errors: np.ndarray, thresholds: np.ndarray = PRECISION_THRESHOLDS) -> np.ndarray:
    """Share of frames whose centre error is at most each threshold; zeros when there are no frames.

    Args:
        errors: ``[T]``, in the unit of the thresholds.
        thresholds: ``[K]``.

    Returns:
        ``[K]`` in [0, 1].
    """
    return (errors[None] <= thresholds[:, None]).mean(1) if len(errors) else np.zeros(len(thresholds))


def precision_at(errors: np.ndarray, threshold: float = 20.0) -> float:
    """Share of frames whose centre error is at most one threshold.

    Args:
        errors: ``[T]``, in the unit of the threshold.
        threshold: 20 pixels, or 0.2 target sizes for normalized errors.

    Returns:
        The share; 0 when there are no frames.
    """
    return float(precision_curve(errors, np.array([threshold]))[0])


@dataclass(frozen=True, kw_only=True)
class Measures:
    """One tracker on one set of sequences; every figure is the mean over sequences, each of equal weight."""

    success_auc: float
    """Mean of the success curve over 21 thresholds 0, 0.05, ..., 1."""
    precision_20: float
    """Share of frames with a centre error of at most 20 pixels."""
    normalized_precision_20: float
    """Share of frames with a centre error of at most 0.2 target sizes."""
    success: np.ndarray = field(repr=False)
    """Success curve ``[21]``."""
    precision: np.ndarray = field(repr=False)
    """Precision curve ``[51]`` over 0..50 pixels."""
    normalized_precision: np.ndarray = field(repr=False)
    """Normalized precision curve ``[51]`` over 0..0.5 target sizes."""
    per_sequence: np.ndarray = field(repr=False)
    """Success AUC of each measured sequence ``[S]``."""


def measure(results: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Measures:
    """Score trajectories with this project's own protocol, called *excluded*.

    Frames where the target is absent do not count, nor does the first frame, whose box the tracker is given. Benchmarks count
    both in their own ways (OTB and its followers score the first frame as perfect), so these figures are for comparing runs here,
    not for tables of a benchmark. Sequences that are left with no frame are left out.

    Args:
        results: per sequence the predicted boxes ``[T, 4]``, the groundtruth ``[T, 4]`` and the absent flags ``[T]``.

    Returns:
        Means over the sequences that have a frame to count.

    Raises:
        ValueError: boxes and flags of a sequence differ in number, or no sequence has a frame to count.
    """
    overlaps, errors, normalized = [], [], []
    for i, (predicted, truth, absent) in enumerate(results):
        if not predicted.shape == truth.shape == (len(absent), 4):
            raise ValueError(
                f"sequence {i}: predictions {predicted.shape}, groundtruth {truth.shape} and {len(absent)} absent flags; "
                "expected one box of four numbers and one flag per frame"
            )
        counted = ~np.asarray(absent, bool)
        counted[:1] = False
        if counted.any():
            pair = predicted[counted].astype(np.float64), truth[counted].astype(np.float64)
            overlaps.append(success_curve(iou(*pair)))
            errors.append(precision_curve(center_error(*pair)))
            normalized.append(precision_curve(normalized_center_error(*pair), NORMALIZED_THRESHOLDS))
    if not overlaps:
        raise ValueError(f"none of the {len(results)} sequences has a visible frame after its first; nothing to measure")
    success, precision, relative = np.mean(overlaps, 0), np.mean(errors, 0), np.mean(normalized, 0)
    return Measures(
        success_auc=float(success.mean()),
        precision_20=float(precision[20]),
        normalized_precision_20=float(relative[20]),
        success=success,
        precision=precision,
        normalized_precision=relative,
        per_sequence=np.mean(overlaps, 1),
    )
