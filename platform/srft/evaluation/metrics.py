"""Measures as free functions on arrays. Boxes are ltwh in pixels.

Pixels are counted inclusively, as all kits of the field do: a box ends at ``left + width - 1`` and has its centre at
``left + (width - 1) / 2``. In overlaps and errors these ones cancel, so the values are those of continuous boxes; the kits' order
of operations is kept, and the precision of the arrays, so that a tie with a threshold falls to the kits' side.

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
    "boc",
    "center_error",
    "iou",
    "least_center_error",
    "maximum_overlap",
    "measure",
    "normalized_center_error",
    "precision_at",
    "precision_curve",
    "rasterized_iou",
    "success_at",
    "success_auc",
    "success_curve",
]

SUCCESS_THRESHOLDS = np.linspace(0, 1, 21)
"""Overlaps 0, 0.05, ..., 1."""
PRECISION_THRESHOLDS = np.arange(51, dtype=np.float64)
"""Centre errors 0, 1, ..., 50 pixels."""
NORMALIZED_THRESHOLDS = np.linspace(0, 0.5, 51)
"""Centre errors 0, 0.01, ..., 0.5 target sizes."""


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of paired boxes, ``|P and G| / (|P| + |G| - |P and G|)``.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truth: ``[T, 4]`` ltwh.

    Returns:
        ``[T]`` in [0, 1] but for rounding, which can exceed 1 in the last digit; 0 where a box has no area or is not a number.
    """
    low = np.maximum(predicted[:, :2], truth[:, :2])
    high = np.minimum(predicted[:, :2] + predicted[:, 2:] - 1, truth[:, :2] + truth[:, 2:] - 1)
    inner = np.clip(high - low + 1, 0, None).prod(1)
    union = np.clip(predicted[:, 2:], 0, None).prod(1) + np.clip(truth[:, 2:], 0, None).prod(1) - inner
    return np.divide(inner, union, out=np.zeros_like(union), where=union > 0)


def _centers(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + (boxes[:, 2:] - 1) / 2


def center_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Euclidean distance of the centres of paired boxes.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truth: ``[T, 4]`` ltwh.

    Returns:
        ``[T]`` pixels; NaN where a box is not a number, which no threshold admits.
    """
    return np.sqrt(((_centers(predicted) - _centers(truth)) ** 2).sum(1))


def normalized_center_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distance of the centres with x counted in target widths and y in target heights.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truth: ``[T, 4]`` ltwh.

    Returns:
        ``[T]`` in target sizes; infinite where the groundtruth has no width or height.
    """
    sized = (truth[:, 2:] > 0).all(1)
    size = np.where(np.expand_dims(sized, 1), truth[:, 2:], 1)
    error = np.sqrt(((_centers(predicted) / size - _centers(truth) / size) ** 2).sum(1))
    error[~sized] = np.inf
    return error


def maximum_overlap(predicted: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Per frame the larger overlap with the groundtruths of several modalities: its success curve's mean is MSR.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truths: ``[M, T, 4]`` ltwh, one groundtruth per modality.

    Returns:
        ``[T]`` in [0, 1].
    """
    return np.max([iou(predicted, truth) for truth in truths], 0)


def least_center_error(predicted: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Per frame the smaller centre error to the groundtruths of several modalities: its precision at 20 pixels is MPR.

    Args:
        predicted: ``[T, 4]`` ltwh.
        truths: ``[M, T, 4]`` ltwh, one groundtruth per modality.

    Returns:
        ``[T]`` pixels.
    """
    return np.min([center_error(predicted, truth) for truth in truths], 0)


def rasterized_iou(predicted: np.ndarray, truth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Overlap in whole pixels inside the image, as vot-toolkit counts it.

    All four numbers are rounded (half to even) in single precision; a box covers columns ``left`` to ``left + width - 1``, so far as
    they lie in the image; the overlap is the share of covered pixels that both cover.

    Args:
        predicted: ``[T, 4]`` ltwh; a row with NaN means no box at all and stands at pixel (0, 0) without covering it.
        truth: ``[T, 4]`` ltwh, likewise.
        size: width and height of the image.

    Returns:
        ``[T]`` in [0, 1]. If the hull of both boxes is no more than one pixel wide or high: 1, two empty regions agree. Otherwise
        if the part of the hull inside the image is: 0.
    """
    boxes = [np.round(np.asarray(b, np.float32)).astype(np.float64) for b in (predicted, truth)]
    none = [np.isnan(b).any(1) for b in boxes]
    lows = [np.where(np.expand_dims(n, 1), 0, b[:, :2]) for b, n in zip(boxes, none, strict=True)]
    highs = [np.where(np.expand_dims(n, 1), 0, b[:, :2] + b[:, 2:] - 1) for b, n in zip(boxes, none, strict=True)]
    last = np.array(size, np.float64) - 1
    hull_low, hull_high = np.minimum(*lows), np.maximum(*highs)
    empty = (hull_low >= hull_high).any(1)
    outside = (np.maximum(hull_low, 0) >= np.minimum(hull_high, last)).any(1)

    def pixels(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.clip(np.minimum(high, last) - np.maximum(low, 0) + 1, 0, None).prod(1)

    first, second = (np.where(n, 0, pixels(low, high)) for low, high, n in zip(lows, highs, none, strict=True))
    both = np.where(none[0] | none[1], 0, pixels(np.maximum(*lows), np.minimum(*highs)))
    union = first + second - both
    overlap = np.divide(both, union, out=np.zeros(len(union)), where=(union > 0) & ~outside)
    overlap[empty] = 1
    return overlap


def success_curve(overlaps: np.ndarray, thresholds: np.ndarray = SUCCESS_THRESHOLDS) -> np.ndarray:
    """Share of frames whose overlap exceeds each threshold, strictly; zeros when there are no frames.

    Args:
        overlaps: ``[T]``.
        thresholds: ``[K]``.

    Returns:
        ``[K]`` in [0, 1]. A perfect tracker has 1 everywhere but at threshold 1, which nothing exceeds.
    """
    if not len(overlaps):
        return np.zeros(len(thresholds))
    ordered = np.sort(overlaps[~np.isnan(overlaps)])
    return (len(ordered) - np.searchsorted(ordered, thresholds, side="right")) / len(overlaps)


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
    if not len(errors):
        return np.zeros(len(thresholds))
    return np.searchsorted(np.sort(errors[~np.isnan(errors)]), thresholds, side="right") / len(errors)


def precision_at(errors: np.ndarray, threshold: float = 20.0) -> float:
    """Share of frames whose centre error is at most one threshold.

    Args:
        errors: ``[T]``, in the unit of the threshold.
        threshold: 20 pixels, or 0.2 target sizes for normalized errors.

    Returns:
        The share; 0 when there are no frames.
    """
    return float(precision_curve(errors, np.array([threshold]))[0])


def success_at(overlaps: np.ndarray, threshold: float) -> float:
    """Share of frames whose overlap exceeds one threshold, strictly: OP.50, OP.75.

    Args:
        overlaps: ``[T]``.
        threshold: such as 0.5.

    Returns:
        The share; 0 when there are no frames.
    """
    return float(success_curve(overlaps, np.array([threshold]))[0])


def boc(successes: np.ndarray, references: np.ndarray) -> float:
    """COESOT's breakout capability: success weighted by how hard a video is, ``100 mean_v s_v (1 - r_v)``.

    Args:
        successes: ``[V]`` success AUC of the tracker on each video, failed videos included.
        references: ``[V]`` or ``[R, V]`` success AUC of the reference trackers (the kit's are 15), which are averaged.

    Returns:
        The score in percent points; 0 when there are no videos.
    """
    difficulty = 1 - np.atleast_2d(references).mean(0)
    return 100 * float((successes * difficulty).mean()) if len(successes) else 0.0


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
