"""One-pass evaluation under the rules of a protocol: from a result and its groundtruth to curves, from curves to measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srft.evaluation import metrics
from srft.evaluation.protocols import Protocol

__all__ = ["MEASURES", "Curves", "curves_of", "mean_curves", "measures_of"]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of one sequence, or mean curves of several."""

    success: np.ndarray
    """``[21]`` over overlaps 0, 0.05, ..., 1."""
    precision: np.ndarray
    """``[51]`` over 0..50 pixels."""
    normalized: np.ndarray
    """``[51]`` over 0..0.5 target sizes."""


MEASURES = {
    "success_auc": lambda curves: curves.success.mean(),
    "precision_20": lambda curves: curves.precision[20],
    "normalized_precision_20": lambda curves: curves.normalized[20],
    "msr": lambda curves: curves.success.mean(),
    "mpr": lambda curves: curves.precision[20],
    "op_50": lambda curves: curves.success[10],
    "op_75": lambda curves: curves.success[15],
}
"""Measures of curves by name, as fractions."""


def measures_of(curves: Curves, names: tuple[str, ...]) -> dict[str, float]:
    """Read measures off curves.

    Args:
        curves: of a sequence, or mean curves.
        names: keys of :data:`MEASURES`.

    Returns:
        Fractions by name.
    """
    return {name: float(MEASURES[name](curves)) for name in names}


def mean_curves(curves: list[Curves], protocol: Protocol) -> Curves:
    """Mean over sequences, each of equal weight, without the sequences that the protocol drops.

    Args:
        curves: of each sequence.
        protocol: says whether a curve that is 0 everywhere is dropped; each kind of curve is on its own in that.

    Returns:
        The mean; zeros where no sequence is left.
    """

    def mean(rows: list[np.ndarray]) -> np.ndarray:
        table = np.array(rows)
        if protocol.drops_failed and len(rows):
            table = table[table.sum(1) > np.finfo(np.float64).eps]
        return table.mean(0) if len(table) else np.zeros(table.shape[-1])

    return Curves(
        success=mean([c.success for c in curves]),
        precision=mean([c.precision for c in curves]),
        normalized=mean([c.normalized for c in curves]),
    )


def curves_of(protocol: Protocol, found: np.ndarray, truths: np.ndarray, flagged: np.ndarray) -> Curves | None:
    """Score one sequence.

    Args:
        protocol: the rules.
        found: ``[R, 4]`` ltwh, what the tracker wrote; rows beyond the groundtruth are cut.
        truths: ``[M, T, 4]`` ltwh groundtruth of each modality.
        flagged: ``[T]`` bool, frames annotated as absent.

    Returns:
        The curves; None if the protocol takes out every frame.
    """
    frames = truths.shape[1]
    if protocol.shorter == "cuts_truth" and 0 < len(found) < frames:
        frames = len(found)
    dtype = np.float32 if protocol.rounds else np.float64
    truths, flagged = truths[:, :frames].astype(np.float64), flagged[:frames]
    missing = 0.0 if protocol.shorter == "zeros" else np.nan
    found = np.concatenate([_repaired(protocol, found[:frames], truths[0]), np.full((max(0, frames - len(found)), 4), missing)])
    if protocol.first_row != "as_found":
        found[0] = truths[0, 0]
    found, truths = found.astype(dtype), truths.astype(dtype)

    sized = (truths[..., 2:] > 0).all((0, 2))
    absent = flagged | ~sized
    taken = {"nothing": np.zeros(frames, bool), "flagged": flagged.copy(), "absent": absent.copy()}[protocol.removes]
    if protocol.removes_first:
        taken[: int(np.argmin(absent)) + 1] = True  # up to the frame whose box the tracker is given
    failed = {
        "nothing": np.zeros(frames, bool),
        "not_positive": ~(truths > 0).all((0, 2)),
        "no_area": ~sized,
        "absent": absent,
    }[protocol.fails]
    failed = np.asarray(failed)[~taken]
    divisor = frames if protocol.divisor == "all" else int((~taken).sum())
    if not divisor:
        return None
    found, truths = found[~taken], truths[:, ~taken]
    with np.errstate(all="ignore"):  # whatever a tracker writes, infinities included
        used = truths if protocol.truths == "nearest" else truths[:1]
        overlaps, errors = metrics.maximum_overlap(found, used), metrics.least_center_error(found, used)
        normalized = np.min([metrics.normalized_center_error(found, truth) for truth in used], 0)
    overlaps[failed], errors[failed], normalized[failed] = -1, protocol.failed_error, protocol.failed_normalized
    share = (~taken).sum() / divisor
    return Curves(
        success=metrics.success_curve(overlaps) * share,
        precision=metrics.precision_curve(errors) * share,
        normalized=metrics.precision_curve(normalized, metrics.NORMALIZED_THRESHOLDS) * share,
    )


def _repaired(protocol: Protocol, found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    # Rows rounded, and unusable ones replaced by the last usable one before.
    if protocol.rounds:
        found = np.round(found.astype(np.float32))
    found = found.astype(np.float64)
    if protocol.repairs == "nothing" or not len(found):
        return found
    if protocol.first_row == "truth_then_repair":
        found[0] = truth[0]
    bad = np.asarray((found[:, 2:] <= 0).any(1))
    if protocol.repairs == "no_area_or_nan":
        bad |= np.isnan(found).any(1)
    if protocol.first_row == "repair_then_truth":
        bad &= ~np.isnan(truth[: len(found)]).any(1)
    bad[0] = False
    return found[np.maximum.accumulate(np.where(bad, 0, np.arange(len(found))))]
