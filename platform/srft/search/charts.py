"""Plots of a study: Pareto front, parallel coordinates, slices through the settings, importances, learning curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srft.evaluation.plots import save_figure
from srft.search.compare import STABILITY, Importance, numbers, plasticity_and_stability, varied
from srft.search.front import pareto_front
from srft.search.record import TrialResult

__all__ = ["draw"]

_LABELLED = 40
"""Trials up to which each is named in a plot."""


def draw(
    found: Sequence[TrialResult], metric: str, importances: Sequence[Importance], folder: Path, *, stability: str = STABILITY
) -> list[Path]:
    """Write every plot that the trials allow.

    Args:
        found: of a study.
        metric: of the study.
        importances: of its settings.
        folder: for PNG files.
        stability: second measure.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure

    scored = [r for r in found if not math.isnan(r.score)]
    made: list[Path] = []

    def save(figure: Any, name: str) -> None:
        save_figure(figure, folder / name)
        made.append(folder / name)

    if not scored:
        return made
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    points = np.array([plasticity_and_stability(r, metric, stability) for r in scored])
    front = pareto_front(points)
    for fixed, marker, label in ((True, "s", "given"), (False, "o", "drawn")):
        rows = np.array([r.trial.fixed == fixed for r in scored])
        axes.scatter(points[rows, 1], points[rows, 0], marker=marker, label=label, color="tab:orange" if fixed else "tab:blue")
    order = np.argsort(points[front, 1])
    axes.step(points[front][order, 1], points[front][order, 0], where="pre", color="0.4", linewidth=1, label="Pareto front")
    crowded = len(scored) > _LABELLED
    for r, (high, kept) in zip([] if crowded else scored, points, strict=False):
        axes.annotate(str(r.trial.index), (kept, high), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel=f"{stability} (kept)", ylabel=f"{metric} (learned)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save(figure, "pareto.png")

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for r in scored:
        curve = [(e["epoch"] + 1, e["metrics"].get(metric, math.nan)) for e in r.history]
        axes.plot(*zip(*curve, strict=True), marker=".", label=str(r.trial.index), linestyle="--" if r.trial.fixed else "-")
    axes.set(xlabel="epoch", ylabel=metric)
    axes.grid(alpha=0.3)
    if not crowded:
        axes.legend(fontsize=7, ncols=3, title="trial")
    save(figure, "curves.png")

    keys, drawn = varied(found), [r for r in scored if not r.trial.fixed]
    if keys and len(drawn) > 1:
        values = np.array([r.score for r in drawn])
        columns = {key: numbers([r.trial.point.get(key) for r in drawn]) for key in keys}
        _parallel(save, columns, values, metric)
        rows = math.ceil(len(keys) / 4)
        figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
        for axes, (key, (places, words)) in zip(figure.subplots(rows, 4, squeeze=False).flat, columns.items(), strict=False):
            axes.scatter(places, values, s=14)
            if words:
                axes.set_xticks(range(len(words)), words, rotation=30, fontsize=7)
            elif min(places) > 0 and max(places) > 20 * min(places):
                axes.set_xscale("log")
            axes.set_title(key, fontsize=9)
            axes.grid(alpha=0.3)
        for axes in figure.axes[len(columns) :]:
            axes.set_axis_off()
        save(figure, "slices.png")
    if importances:
        figure = Figure(figsize=(6, 0.6 + 0.35 * len(importances)), layout="constrained")
        axes = figure.subplots()
        axes.barh([one.key for one in reversed(importances)], [one.share for one in reversed(importances)])
        axes.set(xlabel=f"share of the importance for {metric}")
        save(figure, "importance.png")
    return made


def _parallel(save: Any, columns: dict[str, tuple[np.ndarray, list[str]]], values: np.ndarray, metric: str) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * (len(columns) + 1) + 1, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = []
    for x, words in (*columns.values(), (values, [])):
        wide = not words and x.min() > 0 and x.max() > 20 * x.min()
        x = np.log(x) if wide else x
        lines.append((x - x.min()) / (np.ptp(x) or 1.0))
    height, shade = np.stack(lines), (values - values.min()) / (np.ptp(values) or 1.0)
    for i in np.argsort(values):
        axes.plot(height[:, i], color=colormaps["viridis"](shade[i]), alpha=0.8)
    axes.set_xticks(range(len(columns) + 1), [*columns, metric], rotation=20, fontsize=8, ha="right")
    axes.set_yticks([])
    axes.set_ylim(-0.1, 1.1)
    axes.spines[:].set_visible(False)
    for place, (x, words) in enumerate((*columns.values(), (values, []))):
        axes.axvline(place, color="0.7", linewidth=0.8, zorder=0)
        low, high = (words[0], words[-1]) if words else (f"{min(x):.3g}", f"{max(x):.3g}")
        axes.text(place, -0.03, low, ha="center", va="top", fontsize=7)
        axes.text(place, 1.03, high, ha="center", fontsize=7)
    save(figure, "parallel.png")
