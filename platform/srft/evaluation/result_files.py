"""Result files as the benchmarks' official kits read them: data per benchmark, one writer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from srft.data.sequence import FrameSource, Sequence
from srft.files import write_text

__all__ = ["FORMATS", "ResultFormat", "Run", "runs_of", "tracker_folder", "write_result"]


@dataclass(frozen=True, kw_only=True)
class ResultFormat:
    """Where a benchmark's kit looks for a tracker's boxes, and what a file holds."""

    path: str
    """Of a sequence's file below the tracker's folder; ``{sequence}`` and, with several starts, ``{start:08d}``."""
    first_line: Literal["box", "state"] = "box"
    """The first row is the given box, or the 1 by which vot-toolkit marks the start."""
    confidences: str = "{stem}_scores.txt"
    """Name of the file of scores beside it."""
    times: str = "{stem}_time.txt"
    """Name of the file of seconds per frame beside it."""
    corners: bool = False
    """Eight numbers: x, y of the upper left, upper right, lower right and lower left corner. Otherwise left, top, width, height."""
    leading: bool = True
    """Frames before the first one with a target have rows of zeros. A kit whose annotations begin with the target has them not."""
    from_anchors: bool = False
    """One run per anchor of the sequence, to the end or back to the first frame."""
    stack: str = ""
    """Of vot-toolkit: results are part of a workspace."""


_KIT = ResultFormat(path="{sequence}.txt")
FORMATS: Mapping[str, ResultFormat] = {
    **dict.fromkeys(("fe108", "coesot", "lasher", "own", "got10k", "lasot"), _KIT),
    "visevent": replace(_KIT, leading=False),
    "rgbt234": replace(_KIT, corners=True),
    "depthtrack": ResultFormat(
        path="rgbd-unsupervised/{sequence}/{sequence}_001.txt",
        first_line="state",
        confidences="{stem}_confidence.value",
        times="{stem}_time.value",
        stack="vot2021/rgbd",
    ),
    "vot-rgbd2022": ResultFormat(
        path="baseline/{sequence}/{sequence}_{start:08d}.txt",
        first_line="state",
        confidences="{stem}_confidence.value",
        times="{stem}_time.value",
        from_anchors=True,
        stack="vot2022/rgbd",
    ),
}
"""By the benchmarks' names in ``srft.data.benchmarks``. Numbers are pixels, separated by commas."""


def tracker_folder(out: Path, benchmark: str, name: str) -> Path:
    """Where a tracker's results go.

    Args:
        out: of all benchmarks.
        benchmark: its name.
        name: of the tracker.

    Returns:
        The folder; for vot-toolkit's benchmarks, inside a workspace.

    Raises:
        ValueError: vot-toolkit does not take the name.
    """
    if not FORMATS[benchmark].stack:
        return out / benchmark / name
    if not re.fullmatch(r"[a-zA-Z0-9_-]+", name):
        raise ValueError(f"tracker is named {name!r}; vot-toolkit takes letters, digits, - and _ only: give another --name")
    return out / benchmark / "results" / name


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of a tracker on a sequence, and the file of what it finds."""

    sequence: Sequence
    """The frames in the order in which they are shown."""
    file: Path
    leading: int = 0
    """Rows of frames before the first one with a target, which the file has and the sequence has not."""


class _Some:
    # Frames of a source in another order.

    def __init__(self, frames: FrameSource, order: np.ndarray) -> None:
        self.frames, self._order = frames, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.frames[int(self._order[index])]


def runs_of(sequence: Sequence, form: ResultFormat, folder: Path, anchors: np.ndarray | None = None) -> Iterator[Run]:
    """The runs that a benchmark asks for.

    Args:
        sequence: one sequence.
        form: the benchmark's.
        folder: of the tracker's results.
        anchors: ``[T]`` of a benchmark with several starts: above 0 starts a run forward, below 0 backward.

    Yields:
        One run, or one for each anchor.

    Raises:
        ValueError: anchors are needed and not there.
    """
    if not form.from_anchors:
        leading = sequence.offset if form.leading else 0
        yield Run(sequence=sequence, file=folder / form.path.format(sequence=sequence.name), leading=leading)
        return
    if anchors is None or len(anchors) != len(sequence):
        raise ValueError(
            f"sequence {sequence.name}: no anchors for its {len(sequence)} frames; expected anchor.value beside its groundtruth"
        )
    for start in np.flatnonzero(anchors):
        order = np.arange(start, len(sequence)) if anchors[start] > 0 else np.arange(start, -1, -1)
        part = replace(sequence, frames=_Some(sequence.frames, order), boxes=sequence.boxes[order], absent=sequence.absent[order])
        yield Run(sequence=part, file=folder / form.path.format(sequence=sequence.name, start=int(start)))


def write_result(run: Run, form: ResultFormat, boxes: np.ndarray, scores: np.ndarray, seconds: np.ndarray) -> None:
    """Write boxes, scores and times; the boxes' file last, so that where it is the others are too.

    Args:
        run: what was tracked.
        form: the benchmark's.
        boxes: ``[T, 4]`` ltwh pixels.
        scores: ``[T]``.
        seconds: ``[T]``.
    """
    before = np.zeros(run.leading)
    boxes = np.concatenate([np.zeros((run.leading, 4)), boxes])
    if form.corners:
        left, top, right, bottom = boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
        boxes = np.stack([left, top, right, top, right, bottom, left, bottom], 1)
    rows = [",".join(f"{value:.4f}" for value in box) for box in boxes]
    sure = [f"{value:.6f}" for value in np.concatenate([before, scores])]
    times = [f"{value:.6f}" for value in np.concatenate([before, seconds])]
    if form.first_line == "state":
        rows[0], sure[0] = "1", ""
    stem = run.file.stem
    write_text(run.file.with_name(form.confidences.format(stem=stem)), "\n".join(sure) + "\n")
    write_text(run.file.with_name(form.times.format(stem=stem)), "\n".join(times) + "\n")
    write_text(run.file, "\n".join(rows) + "\n")
