"""A tracker on a benchmark as it lies on disk: result files that the official kit reads, and their scores."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from srft.config import Modality
from srft.data.benchmarks import NativeFrames, open_benchmark, read_annotations
from srft.data.sequence import Sequence
from srft.evaluation.follow import follow
from srft.evaluation.groundtruth import Truth, read_groundtruth
from srft.evaluation.online import Precision
from srft.evaluation.protocols import protocol_of
from srft.evaluation.result_files import FORMATS, ResultFormat, Run, runs_of, write_result
from srft.evaluation.results import Files, read_results
from srft.evaluation.scores import Scores, score
from srft.evaluation.workspace import write_workspace
from srft.files import environment, write_json
from srft.model.tracker import MultiModalTracker

__all__ = ["Failure", "Plan", "describe", "plan", "score_runs", "track_runs", "truths_of", "write_workspace_of"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that could not be tracked to its end."""

    run: Run
    error: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be tracked, and where results go."""

    benchmark: str
    root: Path
    folder: Path
    """Of the tracker's result files; its name is the tracker's."""
    runs: tuple[Run, ...]
    todo: tuple[Run, ...]
    """Runs whose files are not there yet."""

    @property
    def sequences(self) -> list[str]:
        """Names of the sequences."""
        return list(dict.fromkeys(run.sequence.name for run in self.runs))

    @property
    def frames(self) -> int:
        """Frames still to track."""
        return sum(len(run.sequence) - 1 for run in self.todo)


def plan(
    benchmark: str,
    root: Path,
    folder: Path,
    *,
    weights: str,
    split: Any = "test",
    list_name: str | None = None,
    modality: Modality | None = None,
    precision: Precision = "fp32",
    names: tuple[str, ...] = (),
    resume: bool = True,
) -> Plan:
    """Open a benchmark and see what is left to track; results of the same weights and settings are kept.

    Args:
        benchmark: one of ``srft.data.benchmarks.LAYOUTS``.
        root: its folder.
        folder: of the tracker's result files.
        weights: checksum of the tracker's weights.
        split: of the benchmark.
        list_name: which of several published test lists.
        modality: ``rgb`` leaves the auxiliary frames out; None takes the benchmark's.
        precision: of the network.
        names: sequences to track; all of the split when empty.
        resume: keep runs whose files are there; otherwise track them again.

    Returns:
        The plan.

    Raises:
        ValueError: the folder holds results of other weights or settings that would be kept, or a named sequence is not in the split.
    """
    form = FORMATS[benchmark]
    marker = folder / "manifest.json"
    identity = {"benchmark": benchmark, "weights": weights, "split": split, "list": list_name, "modality": modality, "precision": precision}
    found = json.loads(marker.read_text()) if marker.exists() else identity
    was = ", ".join(f"{key} {found.get(key)}" for key, value in identity.items() if found.get(key) != value)
    if was and resume:
        raise ValueError(f"{folder} holds results of {was}; choose another --out or --name, or track anew with --no-resume")
    sequences: dict[str, Sequence] = {
        s.name: s for s in open_benchmark(benchmark, root, split=split, protocol=list_name, modality=modality)
    }
    if unknown := [name for name in names if name not in sequences]:
        raise ValueError(f"--sequences: {', '.join(unknown)} not in split {split} of {root}; it has {', '.join(list(sequences)[:5])}, ...")
    chosen = [sequences[name] for name in names or sequences]
    if was and names and (others := [name for name in sequences if name not in names and _has_results(folder, form, name)]):
        raise ValueError(
            f"{folder} holds results of {was}, also of {len(others)} sequences more ({', '.join(others[:3])}, ...), which would pass for "
            "results of the new ones; choose another --out or --name, or leave --sequences out"
        )
    anchors = (
        {n: a.anchors for n, a in read_annotations(benchmark, root, names=[s.name for s in chosen]).items()} if form.from_anchors else {}
    )
    if form.from_anchors:
        chosen = [_from_the_start(s) for s in chosen]
    runs = tuple(run for s in chosen for run in runs_of(s, form, folder, anchors.get(s.name)))
    if not resume:
        for run in runs:
            run.file.unlink(missing_ok=True)
    if not (marker.exists() and resume):
        write_json(marker, {**identity, "root": str(root.resolve()), "environment": environment()})
    return Plan(benchmark=benchmark, root=root, folder=folder, runs=runs, todo=tuple(run for run in runs if not run.file.exists()))


def _has_results(folder: Path, form: ResultFormat, name: str) -> bool:
    return any(folder.glob(form.path.replace("{start:08d}", "*").format(sequence=glob.escape(name))))


def _from_the_start(sequence: Sequence) -> Sequence:
    # Runs backward end in the first frame of the annotation, where the target may not be in view yet.
    if not sequence.offset or not isinstance(sequence.frames, NativeFrames):
        return sequence
    more = sequence.offset
    boxes = np.concatenate([np.repeat(sequence.boxes[:1], more, 0), sequence.boxes])
    absent = np.concatenate([np.ones(more, bool), sequence.absent])
    return replace(sequence, frames=sequence.frames.whole(), boxes=boxes, absent=absent, offset=0)


def describe(work: Plan, **facts: Any) -> None:
    """Note more about the results in their manifest.

    Args:
        work: the plan.
        facts: what JSON can hold, by name.
    """
    marker = work.folder / "manifest.json"
    write_json(marker, {**json.loads(marker.read_text()), **facts})


def write_workspace_of(works: Several[Plan], trackers: dict[str, str]) -> Path | None:
    """Complete the results of vot-toolkit's benchmarks to a workspace that it analyses.

    Args:
        works: plans of one benchmark in one folder.
        trackers: arguments of ``srft trax``, by the trackers' names.

    Returns:
        The workspace; None for other benchmarks.
    """
    stack = FORMATS[works[0].benchmark].stack
    if not stack:
        return None
    folders = {
        run.sequence.name: frames.folder
        for run in works[0].runs
        if isinstance(frames := getattr(run.sequence.frames, "frames", run.sequence.frames), NativeFrames)
    }
    workspace = works[0].folder.parent.parent
    write_workspace(workspace, stack, folders, trackers)
    return workspace


def track_runs(
    network: MultiModalTracker,
    work: Plan,
    *,
    batch: int = 16,
    rgb_only: bool = False,
    precision: Precision = "fp32",
    workers: int = 1,
    on_frames: Callable[[int], object] | None = None,
) -> list[Failure]:
    """Track what is left, longest first, several runs in one forward pass, and write each when it ends.

    Args:
        network: the tracker.
        work: the plan.
        batch: runs at once.
        rgb_only: leave the auxiliary modality out.
        precision: of the network.
        workers: 1 tracks in this process; more are tasks of the Ray cluster that it is connected to, each with a batch of its own.
        on_frames: called with the number of frames tracked since the last call.

    Returns:
        Runs that failed, such as on a damaged picture; the others are not lost.
    """
    form, failures = FORMATS[work.benchmark], []
    order = sorted(work.todo, key=lambda run: -len(run.sequence))
    sequences = [run.sequence for run in order]
    if workers > 1:
        from srft.evaluation.runner import follow_in_tasks

        followed = follow_in_tasks(
            network, sequences, workers=workers, rgb_only=rgb_only, batch=batch, precision=precision, on_frames=on_frames
        )
    else:
        followed = follow(network, sequences, rgb_only=rgb_only, batch=batch, precision=precision, on_frames=on_frames)
    for found in followed:
        run = order[found.number]
        if found.error is not None:
            failures.append(Failure(run=run, error=str(found.error)))
        else:
            write_result(run, form, found.trajectory.boxes, found.trajectory.scores, found.seconds)
    return failures


def truths_of(work: Plan, groundtruth: Path | None = None) -> dict[str, Truth]:
    """What results are scored by.

    Args:
        work: the plan.
        groundtruth: see :func:`score_runs`.

    Returns:
        Annotations by sequence; none of a benchmark without a protocol.

    Raises:
        ValueError: there are no annotations of a sequence, as in a pack.
    """
    rules = protocol_of(work.benchmark)
    if rules is None:
        return {}
    try:
        return read_groundtruth(Files(groundtruth or work.root), rules, names=work.sequences)
    except ValueError as error:
        raise ValueError(f"{error}. Results are scored by them: give annotations with --groundtruth") from None


def score_runs(
    works: Several[Plan], protocol: str = "kit", *, allow_missing: bool = False, groundtruth: Path | None = None
) -> Scores | None:
    """Score the result files of trackers side by side.

    Args:
        works: plans of one benchmark with the same sequences.
        protocol: ``kit``, ``as_failure`` or ``excluded``.
        allow_missing: leave sequences without a file out, and say so.
        groundtruth: annotations in place of those in the benchmark's folder, such as those of its kit, which has attributes.

    Returns:
        The scores; None for a benchmark without a protocol.
    """
    rules = protocol_of(works[0].benchmark, protocol)
    if rules is None:
        return None
    names = works[0].sequences
    truths = truths_of(works[0], groundtruth)
    found = {}
    for work in works:
        found[work.folder.name] = read_results(
            Files(work.folder),
            names,
            tracker=work.folder.name,
            anchors=rules.measurement == "multistart",
            corner_pixel=rules.corner_pixel,
            rounds=rules.rounds,
        )
    return score(rules, truths, found, allow_missing=allow_missing)
