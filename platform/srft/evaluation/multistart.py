"""Measures of VOT-RGBD2022: accuracy, robustness and expected average overlap (EAO) of runs from anchor frames, as in vot-toolkit.

The tracker is started anew at each anchor and runs to the end of the video, or backward to its begin. A run fails where the overlap
stays at most 0.1 for 10 frames in a row; only what came before counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["FAILURE_OVERLAP", "GRACE", "HIGH", "LOW", "MultiStart", "failure_frame", "multi_start", "overlap_curve", "run_frames"]

GRACE = 10
"""Frames in a row that make a failure."""
FAILURE_OVERLAP = 0.1
"""Overlap, at most, that counts as a miss."""
LOW, HIGH = 115, 755
"""Run lengths over which EAO averages. The curve has entries 0 to HIGH - 1, so the last length is 754."""


def run_frames(anchors: np.ndarray) -> dict[int, np.ndarray]:
    """Frames of every run of a video, in the order in which the tracker sees them.

    Args:
        anchors: ``[T]``, positive where a run forward starts, negative where a run backward does.

    Returns:
        Frame numbers ``[L]`` by the anchor's frame; forward runs first.
    """
    forward = {int(a): np.arange(a, len(anchors)) for a in np.flatnonzero(anchors > 0)}
    return forward | {int(a): np.arange(a, -1, -1) for a in np.flatnonzero(anchors < 0)}


def failure_frame(overlaps: np.ndarray, visible: np.ndarray, *, grace: int = GRACE, threshold: float = FAILURE_OVERLAP) -> int:
    """Where a run fails: the first of ``grace`` visible frames in a row whose overlap is at most the threshold.

    Args:
        overlaps: ``[L]``; the first, where the tracker is started, is 0 and may belong to the row.
        visible: ``[L]`` frames with a groundtruth box; any other ends a row.
        grace: frames in a row.
        threshold: of the overlap.

    Returns:
        Frames before the failure; L if the run does not fail.
    """
    missed = np.concatenate([[0], np.cumsum((overlaps <= threshold) & visible)])
    ends = np.flatnonzero(missed[grace:] - missed[:-grace] == grace) if len(overlaps) >= grace else np.zeros(0, int)
    return int(ends[0]) if len(ends) else len(overlaps)


def overlap_curve(overlaps: np.ndarray, failed: bool, length: int = HIGH) -> tuple[np.ndarray, np.ndarray]:
    """What one run adds to the expected-overlap curve.

    Entry j is the mean overlap of frames 1 to j. After its end a run that has failed goes on with overlap 0, divided by ``j - 1``
    as the toolkit does; a run that has not is left out.

    Args:
        overlaps: ``[L]``, 0 from the failure on.
        failed: whether the run has failed.
        length: of the curve.

    Returns:
        The curve ``[length]`` and whether each entry counts ``[length]``.
    """
    curve, counts = np.zeros(length), np.zeros(length, bool)
    total = np.cumsum(overlaps[1:])
    inside = min(len(overlaps), length)
    curve[1:inside] = total[: inside - 1] / np.arange(1, inside)
    counts[1:inside] = True
    if failed:
        curve[inside:] = (total[-1] if len(total) else 0.0) / np.arange(inside - 1, length - 1)
        counts[inside:] = True
    return curve, counts


@dataclass(frozen=True, kw_only=True)
class MultiStart:
    """One tracker on one set of videos."""

    eao: float
    """Mean of the curve over run lengths 115 to 754."""
    accuracy: float
    """Mean overlap before the failure, over all frames tracked."""
    robustness: float
    """Share of the frames tracked before the failure; videos weigh as their lengths."""
    curve: np.ndarray = field(repr=False)
    """``[755]`` expected overlap by run length."""
    per_sequence: np.ndarray = field(repr=False)
    """``[S, 3]`` EAO, accuracy and robustness of each video alone."""


def multi_start(
    results: Sequence[tuple[int, Sequence[tuple[np.ndarray, np.ndarray]]]],
    *,
    low: int = LOW,
    high: int = HIGH,
    grace: int = GRACE,
    threshold: float = FAILURE_OVERLAP,
) -> MultiStart:
    """Accuracy, robustness and EAO.

    Per video ``R = sum of frames before failures / sum of run lengths`` and ``A = sum of the overlaps there / number of frames
    there`` (the first frame's overlap, which is 0, is among them). Over videos A is weighted by those frames and R by the length of
    the video. The EAO curve averages all runs that count at a length; where none does it is 0.

    Args:
        results: per video its length and its runs, each as overlaps ``[L]`` and visible flags ``[L]``.
        low: first run length of EAO.
        high: length of the curve.
        grace: see :func:`failure_frame`.
        threshold: likewise.

    Returns:
        The measures; 0 for what has no frames.

    Raises:
        ValueError: there are no videos, or one has no runs.
    """
    if not results:
        raise ValueError("no sequences; nothing to measure")
    sums, counts = np.zeros((len(results), high)), np.zeros((len(results), high))
    tracked, kept, robust, lengths = (np.zeros(len(results)) for _ in range(4))
    for i, (length, runs) in enumerate(results):
        if not runs:
            raise ValueError(f"sequence {i} has no anchors, so no runs; expected at least one")
        for overlaps, visible in runs:
            end = failure_frame(overlaps, visible, grace=grace, threshold=threshold)
            curve, active = overlap_curve(np.where(np.arange(len(overlaps)) < end, overlaps, 0.0), end < len(overlaps), high)
            sums[i] += curve
            counts[i] += active
            tracked[i] += end
            kept[i] += overlaps[:end].sum()
        robust[i] = tracked[i] / sum(len(overlaps) for overlaps, _ in runs)
        lengths[i] = length
    curve = _ratio(sums.sum(0), counts.sum(0))
    own = np.column_stack([_ratio(sums, counts)[:, low:].mean(1), _ratio(kept, tracked), robust])
    return MultiStart(
        eao=float(curve[low:].mean()),
        accuracy=float(_ratio(kept.sum(keepdims=True), tracked.sum(keepdims=True))[0]),
        robustness=float((robust * lengths).sum() / lengths.sum()),
        curve=curve,
        per_sequence=own,
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
