"""Scores as one page of HTML that needs nothing else: tables, curves, attributes, pictures, failures, and what the figures came from."""

from __future__ import annotations

import base64
import html
import tempfile
import textwrap
from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from srft.data.sequence import Sequence
from srft.evaluation.groundtruth import Truth
from srft.evaluation.metrics import iou
from srft.evaluation.plots import COLORS, curve_plots, picture_strip, radar_plot
from srft.evaluation.published import peers
from srft.evaluation.results import Result
from srft.evaluation.scores import Scores
from srft.evaluation.tables import LABELS, attribute_rows, main_rows, peers_rows, percent, ranked, sequence_rows
from srft.files import environment, write_text

__all__ = ["Loss", "longest_loss", "write_report"]

LOST = 0.1
"""Overlap up to which a tracker has lost its target."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A stretch over which a tracker was not on its target."""

    first: int
    """Frame, counted from 0."""
    last: int
    frames: int
    """Frames in it that show the target."""


def longest_loss(truth: Truth, result: Result) -> Loss | None:
    """The longest stretch of frames with a visible target that overlaps with the tracker's box by at most :data:`LOST`.

    The frame in which the tracker is shown its target is none of them: result files have a mark there, or anything.

    Args:
        truth: of a sequence.
        result: one pass over it.

    Returns:
        The stretch, the first of the longest; None if the target was never lost.
    """
    boxes, found = truth.boxes[0], truth.placed(result.runs[0])
    frames = min(len(boxes), len(found))
    boxes, found = boxes[:frames], found[:frames]
    visible = ~truth.absent[:frames] & (boxes[:, 2:] > 0).all(1)  # not a number is not above 0
    visible[: truth.leading + 1] = False
    overlap = np.nan_to_num(iou(found, boxes), nan=0.0)
    longest: Loss | None = None
    first, count = 0, 0
    for i in np.flatnonzero(visible).tolist():
        if overlap[i] > LOST:
            count = 0
            continue
        first = first if count else i
        count += 1
        if longest is None or count > longest.frames:
            longest = Loss(first=first, last=i, frames=count)
    return longest


def write_report(
    path: Path,
    scores: Scores,
    truths: Mapping[str, Truth],
    results: Mapping[str, Mapping[str, Result]],
    *,
    sequences: Mapping[str, Sequence] | None = None,
    provenance: Mapping[str, Mapping[str, str]] | None = None,
    title: str = "",
    pictures: int = 3,
) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        scores: of trackers side by side.
        truths: that were scored by.
        results: that were scored, by tracker, then by sequence.
        sequences: with frames, by name, for pictures; those that are lacking are not shown.
        provenance: what is known of each tracker's results, by tracker.
        title: of the page; the benchmark's name when empty.
        pictures: sequences to show of the best, of the middle, and of the worst together; failures come on top.
    """
    protocol, main = scores.protocol, scores.protocol.main
    order = ranked(scores)
    one_pass = protocol.measurement != "multistart"
    losses = {
        name: {s: loss for s in scores.sequences if (loss := longest_loss(truths[s], results[name][s])) is not None}
        for name in (order if one_pass else ())
    }
    with tempfile.TemporaryDirectory() as folder:
        drawn = curve_plots(scores, Path(folder))
        if len(scores.attribute_counts) >= 3:
            radar_plot(scores, Path(folder) / "attributes.png")
            drawn.append(Path(folder) / "attributes.png")
        curves = [_image(file, f"{protocol.benchmark}: {file.stem.replace('_', ' ')} of {', '.join(order)}") for file in drawn]
        strips = _strips(Path(folder), scores, truths, results, losses, sequences or {}, order, pictures) if one_pass else []
    heading = title or protocol.benchmark
    parts = [
        f"<h1>{html.escape(heading)}</h1>",
        f"<p>Protocol <b>{html.escape(protocol.name)}</b> ({html.escape(protocol.sources.get('kit', ''))}), {len(scores.sequences)} of "
        f"{protocol.sequences} sequences. Figures are percent.</p>",
        *map(_note, scores.notes),
        "<h2>Measures</h2>",
        _table(*main_rows(scores)),
    ]
    if found := peers(protocol, len(scores.sequences)):
        (header, rows), mine = peers_rows(scores, found, here="this page")
        parts += ["<h2>Among published results</h2>", "<p>Of the same protocol; a figure with ? must be wrong.</p>"]
        parts.append(_table(header, rows, mine=mine, best=False))
    parts += ["<h2>Curves</h2>", f'<div class="pictures">{"".join(curves)}</div>']
    if scores.attribute_counts:
        header, rows = attribute_rows(scores)
        parts += [f"<h2>{header[0]}</h2>", _table(["attribute", *header[1:]], rows, best=False)]
    if strips:
        parts += ["<h2>Pictures</h2>", *strips]
    if one_pass:
        parts += ["<h2>Failures</h2>", _failures(scores, order, losses)]
    parts += [f"<h2>{LABELS[main]} by sequence</h2>", _by_sequence(scores, losses)]
    parts += ["<h2>Where this comes from</h2>", _provenance(scores, provenance or {})]
    page = resources.files("srft").joinpath("assets", "report.html").read_text("utf-8")
    write_text(path, page.replace("{title}", html.escape(heading)).replace("{body}", "\n".join(parts)))


def _note(note: str) -> str:
    short = textwrap.shorten(note, 160, placeholder=" …")
    if short == note:
        return f"<p class=note>{html.escape(note)}</p>"
    return f"<details class=note><summary>{html.escape(short)}</summary>{html.escape(note)}</details>"


def _number(cell: str) -> bool:
    return cell == "-" or cell.rstrip("?").replace(".", "", 1).isdigit()


def _table(header: Several[str], rows: Several[Several[str]], *, mine: Several[bool] = (), best: bool = True) -> str:
    # Figures stand right; the best of each column of them is bold.
    numbers = [all(map(_number, column)) for column in zip(*rows, strict=True)] if rows else [False] * len(header)
    tops: list[str] = ["" for _ in header]
    if best and len(rows) > 1:
        columns = zip(zip(*rows, strict=True), numbers, strict=True)
        tops = [max((c for c in column if "." in c), key=float, default="") if number else "" for column, number in columns]

    def cell(text: str, number: bool, top: str, tag: str = "td") -> str:
        shown = html.escape(text)
        return f"<{tag}{' class=n' if number else ''}>{f'<b>{shown}</b>' if number and text == top else shown}</{tag}>"

    lines = []
    for i, row in enumerate(rows):
        own = " class=mine" if mine and mine[i] else ""
        cells = [cell(text, number, top) for text, number, top in zip(row, numbers, tops, strict=True)]
        lines.append(f"<tr{own}>{''.join(cells)}</tr>")
    head = "".join(cell(text, number, "", "th") for text, number in zip(header, numbers, strict=True))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _span(loss: Loss) -> str:
    return f"{loss.first} to {loss.last} ({loss.frames} frames)"


def _value(scores: Scores, tracker: str, sequence: str) -> float | None:
    return scores.trackers[tracker].sequences.get(sequence, {}).get(scores.protocol.main)


def _worst(scores: Scores, tracker: str) -> list[str]:
    known = [(value, s) for s in scores.sequences if (value := _value(scores, tracker, s)) is not None]
    return [s for _, s in sorted(known)]


def _failures(scores: Scores, names: Several[str], losses: Mapping[str, Mapping[str, Loss]]) -> str:
    top = names[0]
    worst = [s for s in _worst(scores, top)[:10] if s in losses[top]]
    rows = [[s, *(percent(_value(scores, t, s)) for t in names), _span(losses[top][s])] for s in worst]
    if not rows:
        return f"<p>{html.escape(top)} never lost its target.</p>"
    text = f"<p>The sequences that {html.escape(top)} tracks worst, and its longest stretch with an overlap of at most {LOST}.</p>"
    return text + _table(["sequence", *names, f"{top} lost it in frames"], rows, best=False)


def _by_sequence(scores: Scores, losses: Mapping[str, Mapping[str, Loss]]) -> str:
    header, rows = sequence_rows(scores)
    header = ["sequence", *header[1:], *(f"{t}: frames lost at a stretch" for t in losses)]
    longer = [[*row, *(str(loss.frames) if (loss := losses[t].get(row[0])) else "0" for t in losses)] for row in rows]
    return (
        f"<details open><summary>{len(rows)} sequences; a click on a heading sorts</summary>{_table(header, longer, best=False)}</details>"
    )


def _strips(
    folder: Path,
    scores: Scores,
    truths: Mapping[str, Truth],
    results: Mapping[str, Mapping[str, Result]],
    losses: Mapping[str, Mapping[str, Loss]],
    sequences: Mapping[str, Sequence],
    names: Several[str],
    count: int,
) -> list[str]:
    top, out = names[0], []
    order = [s for s in _worst(scores, top) if s in sequences]
    if not order:
        return []
    spread = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))[::-1]
    wanted: list[tuple[str, list[int] | int, str]] = [(order[i], 6, "") for i in spread]
    for s in order[:count]:
        if loss := losses[top].get(s):
            before, after = max(0, loss.first - 5), min(loss.last, loss.first + 25)
            frames = np.unique(np.linspace(before, after, 6).round().astype(int)).tolist()
            wanted.append((s, frames, f", where {top} loses the target (frame {loss.first})"))
    for number, (name, frames, what) in enumerate(wanted):
        sequence = sequences[name]
        first = len(truths[name]) - len(sequence)  # 0 where a kit's annotations begin with the target, as the sequence does
        rows = {t: truths[name].placed(results[t][name].runs[0]) for t in names[: len(COLORS)]}
        boxes = {t: found[first:][: len(sequence)] for t, found in rows.items()}
        if first < 0 or any(len(b) != len(sequence) for b in boxes.values()):
            continue
        if isinstance(frames, list):
            frames = sorted({min(max(0, f - first), len(sequence) - 1) for f in frames})
        file = folder / f"strip{number}.png"
        picture_strip(sequence, boxes, file, frames=frames, height=160)
        figures = ", ".join(f"{t} {percent(_value(scores, t, name))}" for t in names)
        out.append(f"<figure>{_image(file, f'{name}{what}')}<figcaption>{html.escape(f'{name}{what}: {figures}')}</figcaption></figure>")
    return out


def _provenance(scores: Scores, provenance: Mapping[str, Mapping[str, str]]) -> str:
    rows = [[name, key, value] for name, facts in provenance.items() for key, value in facts.items()]
    rows += [["protocol", rule, source] for rule, source in scores.protocol.sources.items()]
    rows += [["scored with", name, version] for name, version in environment().items()]
    return _table(["of", "what", ""], rows, best=False)


def _image(file: Path, text: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
