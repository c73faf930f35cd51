"""What a benchmark on disk holds, and everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from srft.data.benchmarks.annotations import Tree, annotation_files, read_annotation
from srft.data.benchmarks.layouts import DataError, layout_of

__all__ = ["Report", "check_annotations"]


@dataclass(kw_only=True)
class Report:
    """Counts, and what was found."""

    benchmark: str
    root: str
    sequences: int = 0
    frames: int = 0
    """Annotated frames."""
    absent: int = 0
    """Frames whose target is absent."""
    leading_absent: list[str] = field(default_factory=list)
    """Sequences whose first frame is absent; they are read from the first visible one on."""
    contradictions: dict[str, int] = field(default_factory=dict)
    """By sequence, frames flagged present without a box or absent with one; they are read as absent."""
    problems: list[str] = field(default_factory=list)
    """What must be put right."""

    def summary(self) -> str:
        """The counts as text.

        Returns:
            A few lines.
        """
        lines = [
            f"{layout_of(self.benchmark).title}: {self.sequences} sequences, {self.frames} frames, {self.absent} absent",
            f"  first frame absent in {len(self.leading_absent)} sequences",
            f"  flag and box contradict each other in {sum(self.contradictions.values())} frames of {len(self.contradictions)} sequences",
            f"  {len(self.problems)} problems",
        ]
        return "\n".join(lines)


def check_annotations(benchmark: str, source: str | Path) -> Report:
    """Look through the annotations of all sequences.

    Args:
        benchmark: its name.
        source: folder or zip file, see :func:`srft.data.benchmarks.read_annotations`.

    Returns:
        The report.
    """
    tree = Tree(source)
    files, places = annotation_files(benchmark, tree)
    report = Report(benchmark=benchmark, root=str(source), sequences=len(places))
    for name, prefix in places.items():
        try:
            annotation = read_annotation(tree, files, name, prefix)
        except DataError as error:
            report.problems.append(str(error))
            continue
        report.frames += len(annotation)
        report.absent += int(annotation.absent.sum())
        if annotation.absent[0]:
            report.leading_absent.append(name)
        contradictory = np.flatnonzero(annotation.contradictions)
        if len(contradictory):
            report.contradictions[name] = len(contradictory)
        if len(contradictory) > len(annotation) / 2:
            report.problems.append(
                f"{name}: flags contradict the boxes in {len(contradictory)} of {len(annotation)} frames, the first is row "
                f"{contradictory[0] + 1}; expected few. Is this another edition, with the opposite polarity?"
            )
    return report
