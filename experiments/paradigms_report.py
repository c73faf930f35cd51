"""Tables and curves of the proof study, from the cells that it has finished: the same cells give the same files.

uv run experiments/paradigms_report.py outputs/paradigms --results experiments/results
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from leaderboard import table
from paradigms_record import CELLS, LINES, Row, as_csv, cell_files, read_csv, read_rows, write_cells
from srft.cli import one_sentence
from srft.evaluation.plots import save_figure
from srft.files import write_text
from srft.search.front import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE = "fft"
"""What the others are compared with, at its own best setting."""
DRAWS = 4_000
"""Of the bootstrap."""
MARKS = "osD^vPX<>hdp8"
BOLD = {"penalty, given back": ("*", "SRFT: penalty, given back"), "fft": ("D", "full fine-tuning")}
"""Mark and label of what the study is about."""
OTHER = {"marker": "o", "color": "0.7", "lw": 0.0, "ms": 4.0, "label": "methods with one setting"}
"""How those are drawn that have no curve."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write what the finished cells say."""

    study: Annotated[Path, tyro.conf.Positional]
    """Output directory of experiments/paradigms.py; with nothing new in it, the report is of the cells that were kept."""
    results: Path = Path("experiments/results")
    """Folder for paradigms_tables.md, paradigms.csv, the pictures, and the cells themselves, which the next report starts from."""


def gather(study: Path, results: Path) -> list[Row]:
    """All cells there are: the study's, those kept before, and those of which only a line was kept.

    Args:
        study: output directory of the study.
        results: folder of what was kept, which gets the new ones.

    Returns:
        In order of what they are.
    """
    files = cell_files(study, results / CELLS)
    rows = read_rows(files)
    write_cells(files, results / CELLS)
    known = {row.key for row in rows}
    return sorted([*rows, *(row for row in read_csv(results / LINES) if row.key not in known)], key=lambda row: row.key)


def chosen(rows: list[Row]) -> dict[str, list[Row]]:
    """Each method at the setting that is best on validation, never on test: mean of its success on drawn validation pairs.

    Args:
        rows: of one modality and size.

    Returns:
        By method, its cells at that setting; a setting that has fewer seeds than another of the method is passed over.
    """
    settings: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        settings[row.method][row.setting].append(row)
    best = {}
    for method, found in settings.items():
        most = max(map(len, found.values()))
        whole = [cells for cells in found.values() if len(cells) == most]
        best[method] = max(whole, key=lambda cells: float(np.mean([c.measures["val/pair_auc"] for c in cells])))
    return best


def paired(first: list[Row], second: list[Row], measure: str) -> tuple[float, float, float, int]:
    """Difference of two methods on the same seeds and sequences, with an interval over both.

    Args:
        first: cells of one method.
        second: of the other.
        measure: of every sequence.

    Returns:
        Mean of first less second, its 95 % interval (percentiles of a bootstrap that draws seeds and sequences anew), and the number of
        seeds; not-a-number without a seed in common, and no interval from one seed alone. Seeds of which either has means only are left
        out if there are two others; else they count, and there is no interval.
    """
    others = {row.seed: row for row in second}
    both = [(row, others[row.seed]) for row in first if row.seed in others]
    if not both:
        return float("nan"), float("nan"), float("nan"), 0
    whole = [(a, b) for a, b in both if measure in a.per_sequence and measure in b.per_sequence]
    if len(whole) < min(2, len(both)):
        return float(np.mean([a.measures[measure] - b.measures[measure] for a, b in both])), float("nan"), float("nan"), len(both)
    differences = np.array([np.subtract(a.per_sequence[measure], b.per_sequence[measure]) for a, b in whole])
    mean, (seeds, count) = float(differences.mean()), differences.shape
    if seeds < 2:
        return mean, float("nan"), float("nan"), seeds
    rng = np.random.default_rng(0)
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    sequence_weights = rng.multinomial(count, np.full(count, 1 / count), DRAWS) / count
    drawn = np.einsum("ds,sn,dn->d", seed_weights, differences, sequence_weights)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return mean, float(low), float(high), seeds


def front(points: list[tuple[float, float]]) -> list[int]:
    """Which points no other beats in both measures.

    Args:
        points: pairs to maximize.

    Returns:
        Their indices, by the first measure.
    """
    return sorted(np.flatnonzero(pareto_front(np.array(points))).tolist(), key=lambda i: points[i])


def tables(rows: list[Row], before: str = "") -> str:
    """A table for each modality and size.

    Args:
        rows: all cells.
        before: the tables as they were. Of these, lines stay whose cells, and the reference's, are the same: cells known by their means
            only would lose their intervals.

    Returns:
        Markdown.
    """
    kept = dict(part.split("\n", 1) for part in before.split("### ")[1:])
    lines: list[str] = []
    for modality in dict.fromkeys(row.modality for row in rows):
        start = {r.method: r for r in rows if r.modality == modality and r.size == 0}
        for size in sorted({r.size for r in rows if r.modality == modality and r.size}):
            title = f"{modality}, {size} target pairs"
            best = chosen([r for r in rows if (r.modality, r.size) == (modality, size)])
            lines += [f"### {title}", "", *_table(best, start, kept.get(title, "")), ""]
    return "\n".join(lines)


def _whole(best: dict[str, list[Row]]) -> bool:
    return all(r.per_sequence and r.history for r in best.get(REFERENCE, []))


def _table(best: dict[str, list[Row]], start: dict[str, Row], before: str) -> list[str]:
    body = [_line(name, [row], None, start) for name, row in start.items()]
    order = sorted(best, key=lambda method: -_mean(best[method], "test/pair_auc"))
    tuned = {method: _line(method, best[method], best.get(REFERENCE), start) for method in order}
    earlier = {cells[0]: cells for cells in _cells(before)}
    same = REFERENCE in tuned and _alike(tuned[REFERENCE], earlier)
    body += [earlier[line[0]] if same and _alike(line, earlier) else line for line in tuned.values()]
    head = ["method (setting)", "n", "target pairs", "online AUC / P", "source pairs (kept)", "source online", "train - test"]
    return table([*head, f"pairs - {REFERENCE} [95 %]", f"source - {REFERENCE} [95 %]", "s"], body)


def _cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if " | " in line]


def _alike(line: list[str], earlier: Mapping[str, list[str]]) -> bool:
    # Of as many seeds, and the same to rounding: lines of the CSV have four digits.
    then = earlier.get(line[0])
    if then is None or then[1] != line[1]:
        return False
    numbers = [[float(number) for number in re.findall(r"[\d.]+", cells[2])] for cells in (line, then)]
    return len(numbers[0]) == len(numbers[1]) and np.allclose(*numbers, rtol=0, atol=0.11)


def _mean(cells: list[Row], measure: str) -> float:
    return float(np.mean([c.measures[measure] for c in cells]))


def _line(method: str, cells: list[Row], reference: list[Row] | None, start: dict[str, Row]) -> list[str]:
    percent = lambda value: f"{100 * value:.1f}"

    def spread(measure: str) -> str:
        values = [c.measures[measure] for c in cells]
        return percent(np.mean(values)) + (f" ± {100 * np.std(values, ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else "")

    def against(measure: str) -> str:
        if reference is None or method == REFERENCE:
            return ""
        mean, low, high, seeds = paired(cells, reference, measure)
        if not seeds:
            return "-"
        interval = "" if np.isnan(low) else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
        return f"{100 * mean:+.1f}{interval}" + ("" if interval and seeds == len(cells) else f" (n = {seeds})")

    before = start["zero-shot"].measures["source/pair_auc"] if "zero-shot" in start else float("nan")
    tuned = cells[0].size > 0
    return [
        f"{method} ({cells[0].setting})" if tuned else method,
        str(len(cells)),
        spread("test/pair_auc"),
        f"{percent(_mean(cells, 'test/online_auc'))} / {percent(_mean(cells, 'test/online_precision'))}",
        f"{spread('source/pair_auc')} ({100 * _mean(cells, 'source/pair_auc') / before:.0f} %)",
        percent(_mean(cells, "source/online_auc")),
        percent(np.mean([c.gap for c in cells])) if tuned else "",
        against("test/pair_auc"),
        against("source/pair_auc"),
        f"{np.median([c.seconds for c in cells]):.0f}" if tuned else "",
    ]


def curves(rows: list[Row], modality: str, path: Path) -> None:
    """Target success against what is kept of the source: a curve per method over its settings, and the Pareto front.

    Args:
        rows: all cells.
        modality: which.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    mine = [r for r in rows if r.modality == modality]
    sizes = sorted({r.size for r in mine if r.size})
    settings = {(r.method, r.setting) for r in mine if r.size}
    several = sorted(method for method, count in Counter(method for method, _ in settings).items() if count > 1 and method not in BOLD)
    looks: dict[str, dict[str, Any]] = {
        method: {"marker": mark, "color": "k", "lw": 2.0, "ms": 9.0, "zorder": 3, "label": label} for method, (mark, label) in BOLD.items()
    }
    for i, method in enumerate(several):
        looks[method] = {"marker": MARKS[i % len(MARKS)], "color": f"C{i % 10}", "lw": 1.0, "ms": 5.0, "label": method}
    across = min(2, len(sizes))
    down = -(-len(sizes) // across)
    figure = Figure(figsize=(5.2 * across + 2.0, 4.2 * down), layout="constrained")
    for axes, size in zip(figure.subplots(down, across, squeeze=False).flat, sizes, strict=False):
        _front_axes(axes, [r for r in mine if r.size in (0, size)], looks, f"{modality}, {size} pairs")
    for axes in figure.axes[len(sizes) :]:
        axes.set_axis_off()
    entries = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    named = [look["label"] for look in looks.values() if look["label"] in entries]
    order = [*named, *sorted(entries.keys() - set(named))]
    figure.legend([entries[label] for label in order], order, loc="outside right upper", fontsize=8)
    save_figure(figure, path)


def _front_axes(axes: Axes, rows: list[Row], looks: Mapping[str, Mapping[str, Any]], title: str) -> None:
    points: list[tuple[float, float]] = []
    for method in sorted({r.method for r in rows if r.size}):
        settings: dict[str, list[Row]] = defaultdict(list)
        for r in rows:
            if r.method == method:
                settings[r.setting].append(r)
        mine = sorted((100 * _mean(c, "source/pair_auc"), 100 * _mean(c, "test/pair_auc")) for c in settings.values())
        points += mine
        axes.plot(*zip(*mine, strict=True), **looks.get(method, OTHER))
    kept = [points[i] for i in front(points)]
    axes.plot(*zip(*kept, strict=True), color="black", lw=5, alpha=0.15, zorder=0, label="Pareto front")
    for r in rows:
        if r.method == "zero-shot":
            axes.plot(100 * r.measures["source/pair_auc"], 100 * r.measures["test/pair_auc"], "k+", ms=12, label="untuned")
    axes.set(title=title, xlabel="kept of the source: RGB-only success on pairs, %", ylabel="target success on pairs, %")
    axes.grid(alpha=0.3)


def trajectories(rows: list[Row], modality: str, size: int, path: Path) -> None:
    """Loss in training and success on validation over the steps, each method at its chosen setting: the paper's figure 1.

    Args:
        rows: all cells.
        modality: which.
        size: which.
        path: PNG to write, unless it exists and the curves of the reference are lost.
    """
    from matplotlib.figure import Figure

    best = chosen([r for r in rows if (r.modality, r.size) == (modality, size)])
    if path.exists() and not _whole(best):  # Of cells whose curves are lost.
        return
    figure = Figure(figsize=(12.0, 3.6), layout="constrained")
    shown = ("train/iou", "val/success_auc", "source/success_auc")
    for axes, name in zip(figure.subplots(1, 3), shown, strict=True):
        for i, method in enumerate(sorted(best)):
            histories = [r.history for r in best[method] if r.history and name in r.history[0]]
            if histories:
                means = np.mean([[entry[name] for entry in h] for h in histories], 0)
                axes.plot([entry["step"] for entry in histories[0]], 100 * means, color=f"C{i % 10}", label=method)
        axes.set(xlabel="step", title=name)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    save_figure(figure, path)


def main(report: Report) -> None:
    """Read, compute, write.

    Args:
        report: the settings.
    """
    rows = gather(report.study, report.results)
    path = report.results / "paradigms_tables.md"
    text = tables(rows, path.read_text() if path.exists() else "")
    write_text(path, text)
    write_text(report.results / LINES, as_csv(rows))
    for modality in dict.fromkeys(r.modality for r in rows if r.size):
        curves(rows, modality, report.results / f"paradigms_{modality}.png")
        size = min(r.size for r in rows if r.modality == modality and r.size)
        trajectories(rows, modality, size, report.results / f"paradigms_{modality}_steps.png")
    print(text)


if __name__ == "__main__":
    with one_sentence():
        main(tyro.cli(Report, description=__doc__))
