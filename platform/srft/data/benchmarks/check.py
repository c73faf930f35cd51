"""What a benchmark on disk holds, and everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from srft.data.benchmarks.annotations import Annotation, Tree, annotation_files, read_annotation
from srft.data.benchmarks.images import ImageSource, lost, misfit, open_source
from srft.data.benchmarks.layouts import DataError, Frames, Layout, layout_of
from srft.data.benchmarks.reader import auxiliary, read_offsets
from srft.data.benchmarks.splits import NoSequences, Split, list_split

__all__ = ["Counts", "Problem", "Report", "check_annotations", "check_benchmark"]

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something to put right."""

    kind: Literal["split", "missing", "annotation", "polarity", "frames", "count", "size", "image", "shard"]
    split: str
    sequence: str
    message: str


@dataclass(kw_only=True)
class Counts:
    """What one split holds."""

    source: str
    """Where the names of its sequences are from."""
    sequences: int = 0
    """Listed."""
    missing: int = 0
    """Listed and not on the disk."""
    frames: int = 0
    """Annotated."""
    absent: int = 0
    """Frames whose target is absent."""
    leading_absent: list[str] = field(default_factory=list)
    """Sequences whose first frames are without target; they are read from the first visible one on."""
    contradictions: dict[str, int] = field(default_factory=dict)
    """By sequence, frames flagged present without a box or absent with one; they are read as absent."""
    more_frames: dict[str, int] = field(default_factory=dict)
    """By sequence, frames after the last annotated one, where the benchmark is known for them; they are not read."""
    images: int = 0
    """Decoded."""

    def add(self, annotation: Annotation) -> None:
        """Count a sequence.

        Args:
            annotation: of the sequence.
        """
        self.frames += len(annotation)
        self.absent += int(annotation.absent.sum())
        if annotation.leading_absent:
            self.leading_absent.append(annotation.name)
        if contradictory := int(annotation.contradictions.sum()):
            self.contradictions[annotation.name] = contradictory


@dataclass(kw_only=True)
class Report:
    """Counts by split, and what was found wrong."""

    benchmark: str
    root: str
    splits: dict[str, Counts] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    """Splits of which nothing is there, and why that is thought."""
    problems: list[Problem] = field(default_factory=list)

    def summary(self) -> str:
        """The counts as text.

        Returns:
            A few lines a split.
        """
        lines = [f"{layout_of(self.benchmark).title} in {self.root}"]
        for split, counts in self.splits.items():
            lines += [
                f"  {split:<5}  {counts.sequences} sequences, {counts.missing} missing, {counts.frames} frames, {counts.absent} absent"
                + (f", {counts.images} images read" if counts.images else ""),
                f"         names from {counts.source}",
            ]
            if counts.leading_absent:
                lines.append(
                    f"         {len(counts.leading_absent)} sequences start without their target and are read from where it appears"
                )
            if counts.contradictions:
                total = sum(counts.contradictions.values())
                lines.append(f"         flag and box contradict each other in {total} frames of {len(counts.contradictions)} sequences")
            if counts.more_frames:
                lines.append(f"         {len(counts.more_frames)} sequences have frames after their last annotation, which are not read")
        lines += [f"  {split:<5}  nothing there" for split in self.without]
        return "\n".join([*lines, f"  {len(self.problems)} problems"])


def check_annotations(benchmark: str, source: str | Path) -> Report:
    """Look through annotations without frames, in a folder or zip file.

    Args:
        benchmark: its name.
        source: see :func:`srft.data.benchmarks.read_annotations`.

    Returns:
        The report, with one split named ``all``.
    """
    tree = Tree(source)
    files, places = annotation_files(benchmark, tree)
    counts = Counts(source=str(source), sequences=len(places))
    report = Report(benchmark=benchmark, root=str(source), splits={"all": counts})
    for name, above in places.items():
        try:
            annotation = read_annotation(tree, files, name, above)
        except DataError as error:
            report.problems.append(Problem(kind="annotation", split="all", sequence=name, message=str(error)))
        else:
            counts.add(annotation)
            report.problems += _polarity(annotation, "all")
    return report


def check_benchmark(
    benchmark: str,
    root: str | Path,
    *,
    images: bool = False,
    rgb_only: bool = False,
    on_sequence: Callable[[int], object] | None = None,
) -> Report:
    """Look through everything: lists, annotations, frames of every modality, and images.

    Args:
        benchmark: its name.
        root: its folder.
        images: decode every image; otherwise the first and the last of each sequence.
        rgb_only: leave the auxiliary frames out.
        on_sequence: called with the number of sequences once it is known, then with 0 after each.

    Returns:
        The report. Several sequences are looked through at once; problems are in the order of the lists.

    Raises:
        DataError: there is no such folder. Or not one sequence of the benchmark is in it.
    """
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; expected the root of a data set, or a zip file of annotations")
    layout = layout_of(benchmark)
    aux = auxiliary(layout, "rgb" if rgb_only else None)
    report = Report(benchmark=benchmark, root=str(root))
    work: list[tuple[str, str, Path, int | None]] = []
    for split in _SPLITS:
        try:
            listing = list_split(layout, root, split)
        except NoSequences as error:
            report.without[split] = str(error)
            continue
        except DataError as error:
            report.problems.append(Problem(kind="split", split=split, sequence="", message=str(error)))
            continue
        report.splits[split] = Counts(source=listing.source, sequences=len(listing.names), missing=len(listing.missing))
        offsets = {folder: read_offsets(layout, folder) for folder in set(listing.places.values())}
        for name in listing.names:
            if name in listing.places:
                folder = listing.places[name]
                work.append((split, name, folder, offsets[folder].get(name) if layout.offsets else 0))
            else:
                message = f"{Path(root) / name}: missing; listed by {listing.source}. Fetch the sequence"
                report.problems.append(Problem(kind="missing", split=split, sequence=name, message=message))
    if len(report.without) == len(_SPLITS):
        raise DataError(report.without["test"])
    if on_sequence:
        on_sequence(len(work))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looked = pool.map(lambda job: _look(layout, aux, *job, every=images), work)
        for (split, name, _, _), (annotation, more, read, problems) in zip(work, looked, strict=True):
            counts = report.splits[split]
            if annotation is not None:
                counts.add(annotation)
            if more:
                counts.more_frames[name] = more
            counts.images += read
            report.problems += problems
            if on_sequence:
                on_sequence(0)
    return report


def _polarity(annotation: Annotation, split: str) -> Iterator[Problem]:
    contradictory = annotation.contradictions
    if contradictory.sum() > len(annotation) / 2:
        message = (
            f"{annotation.name}: flags contradict the boxes in {contradictory.sum()} of {len(annotation)} frames, the first in row "
            f"{contradictory.argmax() + 1}; expected few. Is this another edition, with the opposite polarity?"
        )
        yield Problem(kind="polarity", split=split, sequence=annotation.name, message=message)
    elif not annotation.visible.any():
        message = f"{annotation.name}: its target is absent in all {len(annotation)} frames; expected one visible frame"
        yield Problem(kind="annotation", split=split, sequence=annotation.name, message=message)


def _look(
    layout: Layout, aux: tuple[Frames, ...], split: str, name: str, folder: Path, first: int | None, *, every: bool
) -> tuple[Annotation | None, int, int, list[Problem]]:
    # One sequence: its annotation, frames after it, images read, and what is wrong.
    problems: list[Problem] = []

    def note(kind: Literal["annotation", "frames", "count", "size", "image"], message: str) -> None:
        problems.append(Problem(kind=kind, split=split, sequence=name, message=message))

    annotation: Annotation | None = None
    try:
        annotation = read_annotation(Tree(folder), layout.annotations, name)
        problems += _polarity(annotation, split)
    except DataError as error:
        note("annotation", str(error))
    place = folder / layout.sequence.format(name=name, category=name.rpartition("-")[0])
    sources: list[ImageSource] = []
    for alternatives in filter(None, (layout.rgb, aux)):
        try:
            sources.append(open_source(place, name, alternatives, first))
        except ValueError as error:
            note("frames", str(error))
    more, rows = 0, len(annotation) if annotation else 0
    for source in sources if annotation else []:
        extra = len(source) - rows
        if extra > 0 and layout.more_frames:
            more = max(more, extra)
        if message := misfit(source, rows, more_frames=layout.more_frames):
            note("count", message)
    if annotation and (message := lost(sources, rows)):
        note("count", message)
    shortest = min((len(source) for source in sources), default=0)
    read = 0
    for index in range(shortest) if every else sorted({0, shortest - 1} - {-1}):
        shapes = []
        for source in sources:
            try:
                shapes.append(source[index].shape)
                read += 1
            except ValueError as error:
                note("image", str(error))
        if len(shapes) == 2 and shapes[0] != shapes[1] and not any(p.kind == "size" for p in problems):
            sizes = " and ".join(f"{shape[1]}x{shape[0]}" for shape in shapes)
            note("size", f"{sources[0].where(index)} and {sources[1].where(index)}: {sizes} pixels; expected the same")
    return annotation, more, read, problems
