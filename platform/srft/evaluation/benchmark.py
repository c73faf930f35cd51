"""A tracker on a benchmark as it lies on disk: result files that the official kit reads, and their scores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srft.config import Modality
from srft.data.benchmarks import open_benchmark, read_annotations
from srft.data.sequence import Sequence
from srft.evaluation.groundtruth import read_groundtruth
from srft.evaluation.online import Precision, track_sequences
from srft.evaluation.protocols import BENCHMARKS, find_protocol
from srft.evaluation.result_files import FORMATS, Run, runs_of, write_result
from srft.evaluation.results import Files, read_results
from srft.evaluation.scores import Scores, score
from srft.files import git_commit, write_json
from srft.model.tracker import MultiModalTracker

__all__ = ["Failure", "Plan", "plan", "score_runs", "track_runs"]


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

    Returns:
        The plan.

    Raises:
        ValueError: the folder holds results of other weights or settings, or a named sequence is not in the split.
    """
    form = FORMATS[benchmark]
    marker = folder / "manifest.json"
    identity = {"benchmark": benchmark, "weights": weights, "split": split, "list": list_name, "modality": modality, "precision": precision}
    if marker.exists():
        found = json.loads(marker.read_text())
        differing = [key for key, value in identity.items() if found.get(key) != value]
        if differing:
            was = ", ".join(f"{key} {found.get(key)}" for key in differing)
            raise ValueError(f"{folder} holds results of {was}; choose another --out or --name, or delete the folder")
    sequences: dict[str, Sequence] = {
        s.name: s for s in open_benchmark(benchmark, root, split=split, protocol=list_name, modality=modality)
    }
    if unknown := [name for name in names if name not in sequences]:
        raise ValueError(f"--sequences: {', '.join(unknown)} not in split {split} of {root}; it has {', '.join(list(sequences)[:5])}, ...")
    chosen = [sequences[name] for name in names or sequences]
    anchors = (
        {n: a.anchors for n, a in read_annotations(benchmark, root, names=[s.name for s in chosen]).items()} if form.from_anchors else {}
    )
    runs = tuple(run for s in chosen for run in runs_of(s, form, folder, anchors.get(s.name)))
    if not marker.exists():
        write_json(marker, {**identity, "commit": git_commit()})
    return Plan(benchmark=benchmark, root=root, folder=folder, runs=runs, todo=tuple(run for run in runs if not run.file.exists()))


def track_runs(
    network: MultiModalTracker,
    work: Plan,
    *,
    batch: int = 16,
    rgb_only: bool = False,
    precision: Precision = "fp32",
    on_frames: Callable[[int], object] | None = None,
) -> list[Failure]:
    """Track what is left, longest first, several runs in one forward pass, and write each when its group is through.

    Args:
        network: the tracker.
        work: the plan.
        batch: runs at once.
        rgb_only: leave the auxiliary modality out.
        precision: of the network.
        on_frames: called with the number of frames tracked since the last call.

    Returns:
        Runs that failed, such as on a damaged picture; the others are not lost.
    """
    form, failures = FORMATS[work.benchmark], []
    order = sorted(work.todo, key=lambda run: -len(run.sequence))

    def track(group: list[Run]) -> None:
        started = time.perf_counter()
        sequences = [run.sequence for run in group]
        found = track_sequences(network, sequences, rgb_only=rgb_only, batch=batch, precision=precision, on_frames=on_frames)
        seconds = (time.perf_counter() - started) / max(1, sum(len(s) - 1 for s in sequences))
        for run, trajectory in zip(group, found, strict=True):
            write_result(run, form, trajectory.boxes, trajectory.scores, seconds)

    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        try:
            track(group)
        except (ValueError, OSError):  # One run of the group; which, shows one by one.
            for run in group:
                try:
                    track([run])
                except (ValueError, OSError) as error:
                    failures.append(Failure(run=run, error=str(error)))
    return failures


def score_runs(work: Plan, protocol: str = "kit", *, allow_missing: bool = False) -> Scores | None:
    """Score the result files of a plan.

    Args:
        work: the plan.
        protocol: ``kit``, ``as_failure`` or ``excluded``.
        allow_missing: leave sequences without a file out, and say so.

    Returns:
        The scores; None for a benchmark without a protocol.
    """
    plain = work.benchmark.replace("-", "")
    if not any(known.lower().replace("-", "") == plain for known in BENCHMARKS):
        return None
    rules = find_protocol(work.benchmark, protocol)
    names = list(dict.fromkeys(run.sequence.name for run in work.runs))
    truths = read_groundtruth(Files(work.root), rules, names=names)
    found = read_results(
        Files(work.folder),
        names,
        tracker=work.folder.name,
        anchors=rules.measurement == "multistart",
        corner_pixel=rules.corner_pixel,
        rounds=rules.rounds,
    )
    return score(rules, truths, {work.folder.name: found}, allow_missing=allow_missing)
