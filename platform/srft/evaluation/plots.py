"""Pictures of results: success and precision plots, and strips of frames with boxes. matplotlib is imported when a plot is drawn."""

from __future__ import annotations

import io
from collections.abc import Mapping
from collections.abc import Sequence as Several
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from srft.data.sequence import Sequence
from srft.evaluation.metrics import PRECISION_THRESHOLDS, SUCCESS_THRESHOLDS, Measures
from srft.evaluation.scores import Scores
from srft.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ((255, 214, 0), (0, 170, 255), (255, 70, 70), (190, 90, 255))
GROUNDTRUTH = (60, 220, 60)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all.

    Args:
        figure: of matplotlib.
        path: PNG to write.
    """
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    write_bytes(path, picture.getvalue())


def success_plot(trackers: Mapping[str, Measures], path: Path, *, title: str) -> None:
    """Draw success and precision curves side by side; the legends carry the measures.

    Args:
        trackers: measures by the name to show, best drawn first.
        path: PNG to write.
        title: of the figure.
    """
    from matplotlib.figure import Figure  # Not pyplot: a caller's own figures and backend stay as they are.

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, measures in sorted(trackers.items(), key=lambda item: -item[1].success_auc):
        left.plot(SUCCESS_THRESHOLDS, measures.success, label=f"{name} [{measures.success_auc:.3f}]")
        right.plot(PRECISION_THRESHOLDS, measures.precision, label=f"{name} [{measures.precision_20:.3f}]")
    left.set(xlabel="overlap threshold", ylabel="success rate", xlim=(0, 1), ylim=(0, 1), title="Success (AUC)")
    right.set(xlabel="centre error threshold (pixels)", ylabel="precision", xlim=(0, 50), ylim=(0, 1), title="Precision (at 20 pixels)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title)
    save_figure(figure, path)


def front_plot(points: Several[tuple[float, float, str]], path: Path, *, title: str) -> None:
    """Draw what trackers learned against what they kept, joined in the order given.

    Args:
        points: success AUC on the source and on the target, 0 to 1, and what to write beside them.
        path: PNG to write.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([100 * source for source, _, _ in points], [100 * target for _, target, _ in points], marker="o")
    for source, target, label in points:
        axes.annotate(label, (100 * source, 100 * target), textcoords="offset points", xytext=(6, 4))
    axes.set(xlabel="kept of the source: RGB-only success AUC, %", ylabel="target success AUC, %", title=title)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


_AXES = {
    "success": ("overlap threshold", "success rate", ("success_auc", "msr")),
    "precision": ("centre error threshold (pixels)", "precision", ("precision_20", "mpr")),
    "normalized precision": ("centre error threshold (target sizes)", "precision", ("normalized_precision_20",)),
    "precision and recall": ("recall", "precision", ("f_score",)),
    "expected average overlap": ("run length (frames)", "expected overlap", ("eao",)),
}
"""Axes of each kind of curve, and the measures that its legend may show."""


def curve_plots(scores: Scores, folder: Path) -> list[Path]:
    """Draw each kind of curve of several trackers, the best in the legend first, with its measure.

    Args:
        scores: of trackers side by side.
        folder: where to write; one PNG per kind.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure

    written = []
    for kind in next(iter(scores.trackers.values())).curves:
        horizontal, vertical, measures = _AXES[kind]
        measure = next(m for m in measures if m in scores.protocol.measures)
        figure = Figure(figsize=(6, 5), layout="constrained")
        axes = figure.subplots()
        for name, tracker in sorted(scores.trackers.items(), key=lambda item: -item[1].measures[measure]):
            x, y = tracker.curves[kind]
            axes.plot(x, y, label=f"{name} [{100 * tracker.measures[measure]:.1f}]")
        title = f"{scores.protocol.benchmark}: {kind} ({len(scores.sequences)} sequences, protocol {scores.protocol.name})"
        axes.set(xlabel=horizontal, ylabel=vertical, ylim=(0, 1), title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        written.append(folder / f"{kind.replace(' ', '_')}.png")
        save_figure(figure, written[-1])
    return written


def radar_plot(scores: Scores, path: Path) -> None:
    """Draw the main measure of each tracker by attribute, an axis an attribute, each from 0 to the best tracker's figure and a little more.

    Args:
        scores: with at least three attributes.
        path: PNG to write.

    Raises:
        ValueError: there are fewer attributes.
    """
    from matplotlib.figure import Figure

    main, attributes = scores.protocol.main, list(scores.attribute_counts)
    if len(attributes) < 3:
        raise ValueError(f"{path}: {len(attributes)} attributes; expected at least three for a radar plot")
    angles = np.linspace(0, 2 * np.pi, len(attributes), endpoint=False)
    figures = {name: np.array([tracker.attributes[a][main] for a in attributes]) for name, tracker in scores.trackers.items()}
    best = np.maximum(np.max(list(figures.values()), 0), 1e-9)
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    for name, values in sorted(figures.items(), key=lambda item: -scores.trackers[item[0]].measures[main]):
        around = np.append(values / best, values[0] / best[0])
        axes.plot(np.append(angles, angles[0]), around, label=f"{name} [{100 * scores.trackers[name].measures[main]:.1f}]")
        axes.fill(np.append(angles, angles[0]), around, alpha=0.08)
    labels = [f"{a} ({scores.attribute_counts[a]})\n{100 * b:.1f}" for a, b in zip(attributes, best, strict=True)]
    axes.set_xticks(angles, labels, fontsize=8)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], [])
    axes.set_ylim(0, 1.1)
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1.25, 1.1))
    save_figure(figure, path)


def picture_strip(
    sequence: Sequence,
    trackers: Mapping[str, np.ndarray],
    path: Path,
    *,
    frames: int | Several[int] = 6,
    height: int = 200,
) -> None:
    """Draw frames with groundtruth and tracked boxes; below the RGB row, the auxiliary modality.

    Args:
        sequence: what was tracked.
        trackers: boxes ``[T, 4]`` ltwh by the name to show, four at most; boxes that are not numbers are not drawn.
        path: PNG to write.
        frames: the frames to draw, or how many, evenly spaced.
        height: of one picture in pixels.

    Raises:
        ValueError: there are more trackers than colours, or a tracker's boxes are not one per frame.
        OSError: the picture cannot be encoded or written.
    """
    if len(trackers) > len(COLORS):
        raise ValueError(f"{path}: {len(trackers)} trackers to draw; expected at most {len(COLORS)}")
    for name, tracked in trackers.items():
        if tracked.shape != (len(sequence), 4):
            raise ValueError(f"{path}: boxes of {name} are {tracked.shape}; expected {(len(sequence), 4)}, one box per frame")
    rows: list[list[np.ndarray]] = [[], []]
    shown = np.linspace(0, len(sequence) - 1, frames).round().astype(int) if isinstance(frames, int) else frames
    for i in shown:
        frame = np.asarray(sequence.frames[i])
        scale = height / frame.shape[0]
        for row, channels in enumerate(np.split(frame, frame.shape[2] // 3, axis=2)):
            picture = cv2.resize(np.ascontiguousarray(channels), None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
            boxes = [(GROUNDTRUTH, sequence.boxes[i])] if not sequence.absent[i] else []
            boxes += [(color, tracked[i]) for color, tracked in zip(COLORS, trackers.values(), strict=False)]
            for color, box in boxes:
                if np.isfinite(box).all():
                    left, top, right, bottom = (round(float(v) * scale) for v in (*box[:2], *(box[:2] + box[2:])))
                    cv2.rectangle(picture, (left, top), (right, bottom), color, 2)
            for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # an outline, to be read on any ground
                cv2.putText(picture, f"#{i}", (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, thickness, cv2.LINE_AA)
            picture[:, -1] = picture[-1] = 24
            rows[row].append(picture)
    strip = np.concatenate([np.concatenate(row, 1) for row in rows if row], 0)
    legend = np.full((26, strip.shape[1], 3), 24, np.uint8)
    x = 8
    for name, color in [("groundtruth", GROUNDTRUTH), *zip(trackers, COLORS, strict=False)]:
        cv2.putText(legend, name, (x, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
        x += 24 + cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    encoded, data = cv2.imencode(".png", np.concatenate([legend, strip], 0)[..., ::-1])
    if not encoded:
        raise OSError(f"{path}: the picture strip could not be encoded")
    write_bytes(path, data.tobytes())
