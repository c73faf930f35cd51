"""Scores of several trackers side by side on one benchmark, under one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from srft.evaluation import metrics, one_pass
from srft.evaluation.groundtruth import Truth
from srft.evaluation.longterm import long_term
from srft.evaluation.multistart import multi_start, run_frames
from srft.evaluation.protocols import Protocol
from srft.evaluation.results import Result

__all__ = ["Scores", "TrackerScores", "score"]


@dataclass(frozen=True, kw_only=True)
class TrackerScores:
    """One tracker. All measures are fractions."""

    measures: Mapping[str, float]
    extra: Mapping[str, float] = field(default_factory=dict)
    """Measures that the benchmark's papers report besides."""
    sequences: Mapping[str, Mapping[str, float]]
    """Measures by sequence; without sequences of which the protocol counts no frame."""
    attributes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Measures over the sequences that have an attribute."""
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)
    """What to plot by name, as x and y."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Trackers side by side."""

    protocol: Protocol
    sequences: tuple[str, ...]
    """The sequences that were scored."""
    trackers: Mapping[str, TrackerScores]
    notes: tuple[str, ...] = ()
    """What a reader must know: sequences left out, rows filled in."""
    attribute_counts: Mapping[str, int] = field(default_factory=dict)
    """Sequences that have an attribute, of those of which the protocol counts a frame."""

    def to_json(self) -> dict:
        """The report as JSON holds it.

        Returns:
            Benchmark, protocol, measures by tracker and by sequence, attributes, counts and notes.
        """
        report = {
            "benchmark": self.protocol.benchmark,
            "protocol": self.protocol.name,
            "trackers": {name: dict(tracker.measures) for name, tracker in self.trackers.items()},
            "sequences": {
                sequence: {name: dict(t.sequences[sequence]) for name, t in self.trackers.items() if sequence in t.sequences}
                for sequence in self.sequences
            },
            "counts": {"scored": len(self.sequences), "official": self.protocol.sequences},
            "notes": list(self.notes),
        }
        if self.attribute_counts:
            report["attributes"] = {a: {n: dict(t.attributes[a]) for n, t in self.trackers.items()} for a in self.attribute_counts}
        if any(tracker.extra for tracker in self.trackers.values()):
            report["extra"] = {name: dict(tracker.extra) for name, tracker in self.trackers.items()}
        return report


def score(
    protocol: Protocol,
    truths: Mapping[str, Truth],
    results: Mapping[str, Mapping[str, Result]],
    *,
    allow_missing: bool = False,
    boc_references: Mapping[str, float] | None = None,
) -> Scores:
    """Score trackers.

    Args:
        protocol: the rules.
        truths: groundtruth by sequence.
        results: by tracker, then by sequence.
        allow_missing: leave sequences that any tracker lacks, or lacks a run of, out of all, and count rows that are missing as
            failures, and say so; otherwise these are errors.
        boc_references: mean success of COESOT's reference trackers by sequence.

    Returns:
        The scores.

    Raises:
        ValueError: results are missing, or nothing is left to score.
    """
    if not results:
        raise ValueError("results of no tracker; nothing to score")
    notes: list[str] = []
    scored = list(truths)
    for tracker, found in results.items():
        lacking = [name for name in truths if name not in found]
        if not lacking:
            continue
        text = f"{tracker} has no results of {len(lacking)} of {len(truths)} sequences"
        if not allow_missing:
            raise ValueError(
                f"{text}: {', '.join(lacking)}; expected one file per sequence. Name the ones to score with --sequences LIST, "
                "or leave these out with --allow-missing"
            )
        notes.append(f"{text}, which are left out for every tracker: {', '.join(lacking)}")
        scored = [name for name in scored if name not in set(lacking)]
    for tracker, found in results.items() if allow_missing and protocol.measurement == "multistart" else ():
        lacking = [name for name in scored if run_frames(_anchors(truths[name])).keys() - found[name].runs.keys()]
        if lacking:
            text = f"{tracker} lacks runs of {len(lacking)} of {len(truths)} sequences"
            notes.append(f"{text}, which are left out for every tracker: {', '.join(lacking)}")
            scored = [name for name in scored if name not in set(lacking)]
    if not scored:
        raise ValueError(f"no sequence of {protocol.benchmark} has results of every tracker; nothing to score")
    truths = {name: truths[name] for name in scored}
    measure = _MEASUREMENTS[protocol.measurement]
    trackers = {}
    for tracker, found in results.items():
        fitted = {}
        for name, truth in truths.items():
            fitted[name], remarks = _fit(protocol, truth, found[name], f"{tracker}, sequence {name}", allow_missing)
            notes += remarks
        trackers[tracker] = measure(protocol, truths, fitted, boc_references)
    counted = next(iter(trackers.values())).sequences if protocol.measurement == "one_pass" else ()
    counts = {a: n for a in protocol.attributes if (n := sum(a in truths[name].attributes for name in counted))}
    if not protocol.whole(len(scored)):
        text = f"{len(scored)} of {protocol.sequences} sequences are scored"
        if len(scored) > protocol.sequences:
            text = f"{len(scored)} sequences are scored, the official test list has {protocol.sequences}"
        notes.append(f"{text}: not comparable with published results")
    return Scores(protocol=protocol, sequences=tuple(scored), trackers=trackers, notes=tuple(notes), attribute_counts=counts)


def _fit(protocol: Protocol, truth: Truth, result: Result, source: str, allow_missing: bool) -> tuple[Result, list[str]]:
    # A result with the rows that the protocol needs, and what had to be done for that.
    if protocol.measurement == "multistart":
        frames = run_frames(_anchors(truth))
        wrong = [a for a, order in frames.items() if a not in result.runs or len(result.runs[a]) != len(order)]
        if wrong:
            have = result.runs.get(wrong[0])
            state = "no run" if have is None else f"{len(have)} rows in the run"
            raise ValueError(f"{source}: {state} from frame {wrong[0]}; expected {len(frames[wrong[0]])} rows")
        return result, []
    boxes, frames = result.runs[0], len(truth)
    if protocol.measurement == "one_pass" and protocol.shorter == "cuts_truth" and 0 < len(boxes) < frames:
        return result, [f"{source}: {len(boxes)} rows for {frames} frames; the kit scores the first {len(boxes)}"]
    if len(boxes) >= frames or (protocol.measurement == "one_pass" and protocol.shorter == "zeros"):
        kept = Result(runs={0: boxes[:frames]}, confidences=None if result.confidences is None else result.confidences[:frames])
        same = len(boxes) == frames
        return kept, [] if same else [f"{source}: {len(boxes)} rows for {frames} frames; {'cut' if len(boxes) > frames else 'filled up'}"]
    filling = np.full((frames - len(boxes), 4), np.nan)
    scores = None if result.confidences is None else np.zeros(frames)
    if len(placed := truth.placed(boxes)) == frames:
        lead = truth.leading
        if scores is not None:
            scores[lead:] = result.confidences
        moved = Result(runs={0: placed}, confidences=scores)
        return moved, [f"{source}: {len(boxes)} rows for {frames} frames, the first {lead} of them absent; rows begin after these"]
    if not allow_missing:
        raise ValueError(
            f"{source}: {len(boxes)} rows; expected {frames}, one per frame. Write the missing rows, or count them as failures "
            "with --allow-missing"
        )
    note = f"{source}: {len(boxes)} rows for {frames} frames; the missing ones count as failures"
    if protocol.measurement == "one_pass":
        return result, [note]  # one_pass fills them in after it has repaired the others
    if scores is not None:
        scores[: len(boxes)] = result.confidences
    filled = Result(runs={0: np.concatenate([boxes, filling])}, confidences=scores)
    return filled, [note]


def _anchors(truth: Truth) -> np.ndarray:
    if truth.anchors is None:
        raise ValueError(f"groundtruth of {truth.name}: no anchor.value, so no starting frames; VOT-RGBD2022 needs one")
    return truth.anchors


def _one_pass(
    protocol: Protocol, truths: Mapping[str, Truth], results: Mapping[str, Result], boc_references: Mapping[str, float] | None
) -> TrackerScores:
    curves = {}
    for name, truth in truths.items():
        first = truth.leading if protocol.begins_with_target else 0
        found = one_pass.curves_of(protocol, results[name].runs[0][first:], truth.boxes[:, first:], truth.absent[first:])
        if found is not None:
            curves[name] = found
    if not curves:
        raise ValueError(f"the protocol {protocol.name} counts no frame of any sequence; nothing to score")
    mean = one_pass.mean_curves(list(curves.values()), protocol)
    extra = one_pass.measures_of(mean, tuple(n for n in protocol.extra if n in one_pass.MEASURES))
    if boc_references is not None:
        lacking = [name for name in curves if name not in boc_references]
        if lacking:
            raise ValueError(f"--boc-reference: no value for {', '.join(lacking[:5])}; expected one per scored sequence")
        own = np.array([c.success.mean() for c in curves.values()])
        extra["boc"] = metrics.boc(own, np.array([boc_references[name] for name in curves])) / 100
    attributes = {}
    for attribute in protocol.attributes:
        some = [c for name, c in curves.items() if attribute in truths[name].attributes]
        attributes[attribute] = one_pass.measures_of(one_pass.mean_curves(some, protocol), protocol.measures) if some else {}
    shown = {"success": (metrics.SUCCESS_THRESHOLDS, mean.success), "precision": (metrics.PRECISION_THRESHOLDS, mean.precision)}
    if "normalized_precision_20" in protocol.measures:
        shown["normalized precision"] = (metrics.NORMALIZED_THRESHOLDS, mean.normalized)
    return TrackerScores(
        measures=one_pass.measures_of(mean, protocol.measures),
        extra=extra,
        sequences={name: one_pass.measures_of(c, protocol.measures) for name, c in curves.items()},
        attributes=attributes,
        curves=shown,
    )


def _pixels(truth: Truth, found: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    if truth.size is None:
        raise ValueError(f"groundtruth of {truth.name}: the size of the images is not known; overlaps count pixels inside them")
    return metrics.rasterized_iou(found, boxes, truth.size)


def _long_term(protocol: Protocol, truths: Mapping[str, Truth], results: Mapping[str, Result], _: object) -> TrackerScores:
    rows = []
    for name, truth in truths.items():
        found, boxes = results[name].runs[0], truth.boxes[0]
        confidences = results[name].confidences
        visible = int((~np.isnan(boxes).any(1)).sum())
        if not visible:
            raise ValueError(f"groundtruth of {name}: no frame has a box, so recall is not defined")
        rows.append((_pixels(truth, found, boxes), np.zeros(len(found)) if confidences is None else confidences, visible))
    measured = long_term(rows, protocol.resolution)
    return TrackerScores(
        measures={name: float(getattr(measured, name)) for name in protocol.measures},
        sequences=_by_sequence(truths, ("precision", "recall", "f_score"), measured.per_sequence),
        curves={"precision and recall": (measured.recalls, measured.precisions)},
    )


def _multi_start(protocol: Protocol, truths: Mapping[str, Truth], results: Mapping[str, Result], _: object) -> TrackerScores:
    videos = []
    for name, truth in truths.items():
        boxes, runs = truth.boxes[0], []
        for anchor, order in run_frames(_anchors(truth)).items():
            runs.append((_pixels(truth, results[name].runs[anchor], boxes[order]), (boxes[order, 2:] > 0).all(1)))
        videos.append((len(truth), runs))
    low, high = protocol.interval
    measured = multi_start(videos, low=low, high=high, grace=protocol.grace, threshold=protocol.failure_overlap)
    return TrackerScores(
        measures={name: float(getattr(measured, name)) for name in protocol.measures},
        sequences=_by_sequence(truths, ("eao", "accuracy", "robustness"), measured.per_sequence),
        curves={"expected average overlap": (np.arange(1, high), measured.curve[1:])},
    )


def _by_sequence(names: Sequence[str] | Mapping[str, Truth], measures: tuple[str, ...], table: np.ndarray) -> dict[str, dict[str, float]]:
    return {name: dict(zip(measures, map(float, row), strict=True)) for name, row in zip(names, table, strict=True)}


_MEASUREMENTS: Mapping[str, Callable[..., TrackerScores]] = {
    "one_pass": _one_pass,
    "longterm": _long_term,
    "multistart": _multi_start,
}
