"""Long-term measures of DepthTrack: precision, recall and F-score over the tracker's own confidence, as in vot-toolkit.

A tracker may say at any frame that the target is not there, by a low confidence. With threshold ``t`` only frames with
``confidence >= t`` are answers; precision is the mean overlap of the answers, recall their overlap summed over the visible frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["RESOLUTION", "LongTerm", "confidence_thresholds", "f_score", "long_term", "precision_recall"]

RESOLUTION = 100
"""Thresholds on the confidence, the two infinite ones included."""


def confidence_thresholds(confidences: np.ndarray, resolution: int = RESOLUTION) -> np.ndarray:
    """Thresholds that cut the pooled confidences into bins of equal number.

    With N numbers sorted downwards and ``d = floor(N / (resolution - 2))`` these are the ones at
    ``round(linspace(d, N - d, resolution - 2))``, or all of them when there are no more than that.

    Args:
        confidences: ``[N]`` of all frames of all sequences; NaN is dropped.
        resolution: how many thresholds.

    Returns:
        At most ``[resolution]``, downwards, infinity first and minus infinity last.
    """
    scores = np.sort(confidences[~np.isnan(confidences)])[::-1]
    inner = resolution - 2
    if len(scores) > inner:
        step = len(scores) // inner
        scores = scores[np.round(np.linspace(step, len(scores) - step, inner)).astype(int)]
    return np.concatenate([[np.inf], scores, [-np.inf]])


def precision_recall(overlaps: np.ndarray, confidences: np.ndarray, visible: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of one sequence at each threshold.

    ``Pr(t) = mean of the overlaps`` and ``Re(t) = sum of the overlaps / visible``, both over frames with ``confidence >= t``.

    Args:
        overlaps: ``[T]``; where the target is absent, 1 if the tracker gives no box either and 0 if it does.
        confidences: ``[T]``; NaN is never an answer.
        visible: frames with a groundtruth box.
        thresholds: ``[K]``.

    Returns:
        Precision ``[K]``, 1 where nothing is answered, and recall ``[K]``, 0 there.

    Raises:
        ValueError: no frame is visible, so there is nothing to recall.
    """
    if visible <= 0:
        raise ValueError("recall needs at least one frame with a groundtruth box; found none")
    known = ~np.isnan(confidences)
    order = np.argsort(-confidences[known], kind="stable")
    total = np.concatenate([[0.0], np.cumsum(overlaps[known][order])])
    answered = np.searchsorted(-confidences[known][order], -thresholds, side="right")
    precision = np.divide(total[answered], answered, out=np.ones(len(thresholds)), where=answered > 0)
    return precision, total[answered] / visible


def f_score(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Harmonic mean ``2 Pr Re / (Pr + Re)``.

    Args:
        precision: any shape.
        recall: the same shape.

    Returns:
        The same shape; 0 where both are 0.
    """
    both = precision + recall
    return np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)


@dataclass(frozen=True, kw_only=True)
class LongTerm:
    """One tracker on one set of sequences, at the threshold where its F-score is largest."""

    precision: float
    recall: float
    f_score: float
    threshold: float
    """The confidence there."""
    precisions: np.ndarray = field(repr=False)
    """``[K]`` mean over sequences at each threshold."""
    recalls: np.ndarray = field(repr=False)
    """``[K]``."""
    per_sequence: np.ndarray = field(repr=False)
    """``[S, 3]`` precision, recall and F-score of each sequence at that one threshold."""


def long_term(results: Sequence[tuple[np.ndarray, np.ndarray, int]], resolution: int = RESOLUTION) -> LongTerm:
    """Precision, recall and F-score: thresholds from all frames, curves averaged over sequences, then the largest F-score.

    Args:
        results: per sequence overlaps ``[T]``, confidences ``[T]`` and the number of visible frames.
        resolution: how many thresholds.

    Returns:
        The measures.

    Raises:
        ValueError: there are no sequences.
    """
    if not results:
        raise ValueError("no sequences; nothing to measure")
    thresholds = confidence_thresholds(np.concatenate([confidences for _, confidences, _ in results]), resolution)
    curves = np.array([precision_recall(overlaps, confidences, visible, thresholds) for overlaps, confidences, visible in results])
    precisions, recalls = curves.mean(0)
    f_scores = f_score(precisions, recalls)
    best = int(np.argmax(f_scores))
    own = curves[:, :, best]
    return LongTerm(
        precision=float(precisions[best]),
        recall=float(recalls[best]),
        f_score=float(f_scores[best]),
        threshold=float(thresholds[best]),
        precisions=precisions,
        recalls=recalls,
        per_sequence=np.column_stack([own, f_score(own[:, 0], own[:, 1])]),
    )
