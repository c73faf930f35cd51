"""Scores as tables: for a terminal, as CSV and as LaTeX. Figures are percent, except in the CSV, which has fractions."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from srft.evaluation.published import Published
from srft.evaluation.scores import Scores

__all__ = [
    "LABELS", "Table", "aligned", "attribute_rows", "csv_text", "latex_text", "main_rows", "peers_rows", "peers_table", "percent",
    "ranked", "sequence_rows",
]  # fmt: skip


class Table(NamedTuple):
    """What any rendering of a table shows."""

    header: list[str]
    rows: list[list[str]]


LABELS = {
    "success_auc": "SR",
    "precision_20": "PR",
    "normalized_precision_20": "NPR",
    "msr": "MSR",
    "mpr": "MPR",
    "precision": "Pr",
    "recall": "Re",
    "f_score": "F",
    "eao": "EAO",
    "accuracy": "A",
    "robustness": "R",
    "op_50": "OP.50",
    "op_75": "OP.75",
    "boc": "BOC",
}
"""What the field calls each measure."""


def percent(value: float | None) -> str:
    """A fraction as the tables show it.

    Args:
        value: None where there is none.

    Returns:
        Percent with one decimal, or ``-``.
    """
    return "-" if value is None else f"{100 * value:.1f}"


def ranked(scores: Scores) -> list[str]:
    """Trackers in the order of the tables.

    Args:
        scores: of trackers side by side.

    Returns:
        Names, the best by the main measure first.
    """
    return sorted(scores.trackers, key=lambda name: -scores.trackers[name].measures[scores.protocol.main])


def aligned(table: Table) -> str:
    """A table for a terminal.

    Args:
        table: any.

    Returns:
        Text; the first column to the left, the others to the right.
    """
    header, rows = table
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    )


def main_rows(scores: Scores) -> Table:
    """One row per tracker, best first.

    Args:
        scores: of trackers side by side.

    Returns:
        All measures.
    """
    measures = scores.protocol.measures
    extra = [name for name in scores.protocol.extra if any(name in t.extra for t in scores.trackers.values())]
    rows = []
    for name in ranked(scores):
        tracker = scores.trackers[name]
        rows.append([name, *(percent(tracker.measures[m]) for m in measures), *(percent(tracker.extra.get(m)) for m in extra)])
    return Table(["tracker", *(LABELS[m] for m in (*measures, *extra))], rows)


def attribute_rows(scores: Scores) -> Table:
    """The main measure of each tracker over the sequences that have an attribute, one row per attribute.

    Args:
        scores: with attributes.

    Returns:
        How many sequences have it, then the trackers.
    """
    names, main = ranked(scores), scores.protocol.main
    rows = [
        [attribute, str(count), *(percent(scores.trackers[name].attributes[attribute].get(main)) for name in names)]
        for attribute, count in scores.attribute_counts.items()
    ]
    return Table([f"{LABELS[main]} by attribute", "sequences", *names], rows)


def sequence_rows(scores: Scores) -> Table:
    """The main measure of each tracker on each sequence, one row per sequence.

    Args:
        scores: of trackers side by side.

    Returns:
        The trackers.
    """
    names, main = ranked(scores), scores.protocol.main
    rows = [
        [sequence, *(percent(scores.trackers[name].sequences.get(sequence, {}).get(main)) for name in names)]
        for sequence in scores.sequences
    ]
    return Table([f"{LABELS[main]} by sequence", *names], rows)


def peers_rows(scores: Scores, found: Mapping[str, Mapping[str, Published]], *, here: str) -> tuple[Table, list[bool]]:
    """One's own trackers among published ones, best first; a figure that must be wrong carries a question mark.

    Args:
        scores: one's own.
        found: published figures, from :func:`srft.evaluation.published.peers`.
        here: source of one's own.

    Returns:
        Measures and sources, and which rows are one's own.
    """
    measures = scores.protocol.measures
    lines: list[tuple[float, bool, list[str]]] = []
    for name, tracker in scores.trackers.items():
        lines.append((tracker.measures[scores.protocol.main], True, [name, *(percent(tracker.measures[m]) for m in measures), here]))
    for name, figures in found.items():
        cells = [f"{f.percent:.1f}{'?' if f.error else ''}" if (f := figures.get(m)) else "-" for m in measures]
        main = figures.get(scores.protocol.main)
        sources = "; ".join(dict.fromkeys(f.source for f in figures.values()))
        lines.append((main.percent / 100 if main else -1.0, False, [name, *cells, sources]))
    lines.sort(key=lambda line: -line[0])
    header = ["tracker", *(LABELS[m] for m in measures), "source"]
    return Table(header, [row for _, _, row in lines]), [own for _, own, _ in lines]


def peers_table(scores: Scores, found: Mapping[str, Mapping[str, Published]]) -> str:
    """:func:`peers_rows` for a terminal.

    Args:
        scores: one's own.
        found: published figures, from :func:`srft.evaluation.published.peers`.

    Returns:
        Text; one's own trackers are marked with an arrow.
    """
    (header, rows), mine = peers_rows(scores, found, here="here")
    marked = [[f"{'>' if own else ' '} {name}", *cells] for own, (name, *cells) in zip(mine, rows, strict=True)]
    return aligned(Table([f"  {header[0]}", *header[1:]], marked))


def csv_text(scores: Scores) -> str:
    """All scores as one table: ``scope`` is ``all``, ``attribute`` or ``sequence``, and ``name`` which one.

    Args:
        scores: of trackers side by side.

    Returns:
        CSV with a header; fractions with all digits.
    """
    measures = scores.protocol.measures
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["benchmark", "protocol", "scope", "name", "tracker", *measures])
    head = [scores.protocol.benchmark, scores.protocol.name]
    for name, tracker in scores.trackers.items():
        scopes: list[tuple[str, str, Mapping[str, float]]] = [("all", "", tracker.measures)]
        scopes += [("attribute", a, tracker.attributes[a]) for a in scores.attribute_counts]
        scopes += [("sequence", s, values) for s, values in tracker.sequences.items()]
        writer.writerows([*head, scope, which, name, *(repr(values[m]) for m in measures)] for scope, which, values in scopes)
    return out.getvalue()


def latex_text(scores: Scores, *, attributes: bool = False) -> str:
    """The main table, and the one by attribute if asked for, in LaTeX with booktabs; the best figure of a column is bold.

    Args:
        scores: of trackers side by side.
        attributes: add the table by attribute.

    Returns:
        LaTeX.
    """
    protocol, names = scores.protocol, ranked(scores)
    rows = [[scores.trackers[name].measures[m] for m in protocol.measures] for name in names]
    comment = f"% {protocol.benchmark}, protocol {protocol.name}, {len(scores.sequences)} of {protocol.sequences} sequences\n"
    text = comment + _latex(["Tracker", *(LABELS[m] for m in protocol.measures)], names, rows)
    if attributes and scores.attribute_counts:
        kinds = list(scores.attribute_counts)
        rows = [[scores.trackers[name].attributes[a][protocol.main] for a in kinds] for name in names]
        text += f"\n% {LABELS[protocol.main]} by attribute\n" + _latex(["Tracker", *kinds], names, rows)
    return text


def _latex(header: Sequence[str], names: Sequence[str], rows: Sequence[Sequence[float]]) -> str:
    best = [max(column) for column in zip(*rows, strict=True)]
    lines = [rf"\begin{{tabular}}{{l{'c' * (len(header) - 1)}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
    for name, row in zip(names, rows, strict=True):
        figures = [rf"\textbf{{{100 * v:.1f}}}" if v == b else f"{100 * v:.1f}" for v, b in zip(row, best, strict=True)]
        lines.append(" & ".join([re.sub(r"([&%$#_{}])", r"\\\1", name), *figures]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
