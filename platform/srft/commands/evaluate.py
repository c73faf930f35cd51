"""``srft evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from srft.evaluation.benchmark import Failure, Plan
    from srft.model.tracker import MultiModalTracker


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Track a benchmark, write result files as its official kit reads them, and score them.

    Results that are there are kept: the same command goes on where it was stopped. Without --benchmark, the shipped real recording
    (three cars, DAVIS346 event camera).

    srft evaluate outputs/winner/epoch_0011 outputs/fft/epoch_0011 --benchmark lasher --root /data/LasHeR --workers 8

    srft evaluate outputs/winner/epoch_0011 --benchmark visevent --root /data/VisEvent --split val --batch 32 --device cuda --precision bf16

    srft evaluate tiny_rgb --json scores.json --pictures pictures
    """

    weights: tyro.conf.Positional[tuple[str, ...]]
    """Names of shipped weights, .safetensors files, or checkpoint directories."""
    benchmark: str | None = None
    """fe108, visevent, coesot, depthtrack, vot-rgbd2022, lasher, rgbt234, got10k, lasot, or own."""
    root: Path | None = None
    """Folder of the benchmark as it was downloaded."""
    split: Literal["train", "val", "trainval", "test", "all"] = "test"
    """Which of its sequences."""
    list_name: str | None = None
    """Which of several published test lists, such as VisEvent's 320, 218 or 172."""
    sequences: tuple[str, ...] = ()
    """Names of the sequences to track; all when left out."""
    protocol: Literal["kit", "as_failure", "excluded"] = "kit"
    """What a frame without a target counts: as in the official kit, as a failure, or not at all."""
    out: Path = Path("results")
    """Folder of result files; they are in <out>/<benchmark>/<name>. Those of DepthTrack and VOT-RGBD2022 make a workspace of
    vot-toolkit, <out>/<benchmark>."""
    name: tuple[str, ...] = ()
    """Of each tracker in tables and file names; from the weights when left out."""
    resume: bool = True
    """Keep what is there of the same weights and settings."""
    groundtruth: Path | None = None
    """Annotations to score by, such as those of the kit, which list attributes; the benchmark's own when left out."""
    batch: int = 16
    """Sequences in one forward pass."""
    workers: int = 1
    """More than 1 are tasks of a Ray cluster: the one that RAY_ADDRESS names, or one that is started here. They take its GPUs if it has
    some."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network."""
    json: Path | None = None
    """Write the measures here."""
    pictures: Path | None = None
    """Write a success plot and picture strips here (the shipped recording)."""
    rgb_only: bool = False
    """Leave the auxiliary modality out."""


_SHIPPED = ("weights", "name", "device", "json", "pictures", "rgb_only")
"""Options that the shipped recording goes by; the others are a benchmark's."""


def run(command: Evaluate) -> None:
    """Track, score and print.

    Args:
        command: the options.

    Raises:
        ValueError: there are no weights, names are not one per weights or not different, a benchmark comes without its folder, or an
            option is out of range or would do nothing.
    """
    if not command.weights:
        raise ValueError("no weights; expected the name of shipped weights, a file, or a checkpoint directory")
    if command.name and len(command.name) != len(command.weights):
        raise ValueError(f"--name has {len(command.name)} names for {len(command.weights)} weights; expected one for each")
    names = [_name(command, i) for i in range(len(command.weights))]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two trackers are named {twice[0]}; give them different names with --name")
    _check_options(command)
    if command.benchmark is None:
        _cars(command, names)
    elif command.root is None:
        raise ValueError(f"--benchmark {command.benchmark} without --root; give the folder that it was downloaded to")
    else:
        _benchmark(command, command.benchmark, command.root, names)


_SCORES = ("json", "protocol", "groundtruth")
"""Options of scores, which a benchmark without a protocol has not."""


def _check_options(command: Evaluate) -> None:
    from srft.data.benchmarks import layout_of
    from srft.evaluation.protocols import protocol_of

    scored = False
    if command.benchmark is not None:
        layout_of(command.benchmark)
        scored = protocol_of(command.benchmark, command.protocol) is not None
    # An option as it is by default cannot be told from one that was left out, and does no harm.
    for name in ("workers", "batch"):
        if (value := getattr(command, name)) < 1:
            raise ValueError(f"--{name} is {value}; expected at least 1")
    changed = {f.name: getattr(command, f.name) for f in fields(command) if getattr(command, f.name) != f.default}
    idle = {
        "without --benchmark": changed.keys() - _SHIPPED if command.benchmark is None else (),
        f"with --benchmark {command.benchmark}": () if command.benchmark is None else ("pictures", *(() if scored else _SCORES)),
        f"with --workers {command.workers}": ("device",) if command.workers > 1 else (),
    }
    for case, names in idle.items():
        if given := [_as_typed(name, value) for name, value in changed.items() if name in names]:
            verb, them = ("has", "it") if len(given) == 1 else ("have", "them")
            remedy = "name one, or " if command.benchmark is None else ""
            raise ValueError(f"{' '.join(given)} {verb} no effect {case}; {remedy}leave {them} out")


def _as_typed(name: str, value: object) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _name(command: Evaluate, i: int) -> str:
    import re

    if command.name:
        return command.name[i]
    path = Path(command.weights[i])
    named = f"{path.resolve().parent.name}-{path.name}" if path.is_dir() else path.stem
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", named)


def _tracker(weights: str, device: str) -> tuple[MultiModalTracker, str]:
    # The network, and the checksum of its weights.
    import torch

    from srft.files import sha256
    from srft.model.pretrained import load_tracker, weights_path
    from srft.training.step import tuned_tracker

    folder = Path(weights)
    inside = folder.is_dir()
    network = tuned_tracker(folder) if inside else load_tracker(weights)
    file = folder / "weights.safetensors" if inside else weights_path(weights)
    chosen = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return network.to(chosen), sha256(file)


def _benchmark(command: Evaluate, benchmark: str, root: Path, names: list[str]) -> None:
    import contextlib
    import textwrap

    from srft.evaluation import tables
    from srft.evaluation.benchmark import score_runs, write_workspace_of
    from srft.evaluation.published import peers
    from srft.files import write_json
    from srft.training.cluster import cluster

    works, failures = [], []
    with cluster() if command.workers > 1 else contextlib.nullcontext():
        for weights, name in zip(command.weights, names, strict=True):
            work, failed = _track(command, benchmark, root, weights, name)
            works.append(work)
            failures += failed
    for failure in failures:
        print(f"failed       {failure.run.file.parent.name}/{failure.run.file.stem}: {failure.error}")
    runs = sum(len(work.runs) for work in works)
    if len(failures) == runs:
        raise ValueError(f"none of {len(failures)} runs could be tracked")
    scores = score_runs(works, command.protocol, allow_missing=bool(failures), groundtruth=command.groundtruth)
    if scores is not None:
        print(f"\n{scores.protocol.benchmark}, protocol {scores.protocol.name}, {len(scores.sequences)} sequences\n")
        print(tables.aligned(tables.main_rows(scores)))
        if found := peers(scores.protocol, len(scores.sequences)):
            print(f"\nAmong published results of the same protocol (? must be wrong):\n{tables.peers_table(scores, found)}")
        for note in scores.notes:
            print(f"note: {textwrap.shorten(note, 300, placeholder=' ... (all in --json)')}")
        if command.json:
            write_json(command.json, scores.to_json())
    workspace = write_workspace_of(works, {n: _trax(command, w) for n, w in zip(names, command.weights, strict=True)})
    if workspace is not None:
        print(f"workspace    vot analysis --workspace {workspace} {' '.join(names)}")
    if failures:
        raise ValueError(f"{len(failures)} of {runs} runs failed; put their files right and give the same command again")


def _trax(command: Evaluate, weights: str) -> str:
    # What runs the tracker as it was evaluated.
    arguments = [f'"{Path(weights).resolve() if Path(weights).exists() else weights}"']
    if command.rgb_only:
        arguments.append("--aux none")
    if command.precision != "fp32":
        arguments.append(f"--precision {command.precision}")
    return " ".join(arguments)


def _track(command: Evaluate, benchmark: str, root: Path, weights: str, name: str) -> tuple[Plan, list[Failure]]:
    import time

    from tqdm import tqdm

    from srft.data.benchmarks import layout_of
    from srft.evaluation.benchmark import describe, plan, track_runs, truths_of
    from srft.evaluation.result_files import tracker_folder

    network, checksum = _tracker(weights, "cpu" if command.workers > 1 else command.device)
    rgb_only = command.rgb_only or network.streams == 1 or layout_of(benchmark).modality == "rgb"
    work = plan(
        benchmark,
        root,
        tracker_folder(command.out, benchmark, name),
        weights=checksum,
        split=command.split,
        list_name=command.list_name,
        modality="rgb" if rgb_only else None,
        precision=command.precision,
        names=command.sequences,
        resume=command.resume,
    )
    truths_of(work, command.groundtruth)  # what cannot be scored is said before it is tracked
    kept = f", {len(work.runs) - len(work.todo)} of them are there already" if len(work.todo) < len(work.runs) else ""
    print(f"{name} on {benchmark}, split {command.split}: {len(work.runs)} runs{kept}, {work.frames} frames to track", flush=True)
    started = time.perf_counter()
    with tqdm(total=work.frames, desc=name, unit="frame", disable=None) as bar:
        failures = track_runs(
            network,
            work,
            batch=command.batch,
            rgb_only=rgb_only,
            precision=command.precision,
            workers=command.workers,
            on_frames=bar.update,
        )
    if work.frames:
        seconds = time.perf_counter() - started
        device = f"{command.workers} tasks" if command.workers > 1 else str(next(network.parameters()).device)
        speed = {"frames": work.frames, "seconds": round(seconds, 3), "device": device, "batch": command.batch}
        describe(work, weights_from=weights, streams=network.streams, sequences=work.sequences, last_tracked=speed)
        print(f"{work.frames / seconds:.1f} frames/s, result files in {work.folder}")
    return work, failures


def _cars(command: Evaluate, names: list[str]) -> None:
    from srft.data import davis_cars
    from srft.evaluation.plots import picture_strip, success_plot
    from srft.evaluation.runner import TestSet, evaluate
    from srft.files import write_json

    cars = TestSet(name="DAVIS cars", sequences=tuple(davis_cars.load()), rgb_only=command.rgb_only)
    figures, drawn, tracked = {}, {}, {}
    for weights, name in zip(command.weights, names, strict=True):
        network, _ = _tracker(weights, command.device)
        evaluation = evaluate(network, [cars])
        measures = drawn[name] = evaluation.measures[cars.name]
        tracked[name] = evaluation.trajectories[cars.name]
        print(f"{name}  success AUC {100 * measures.success_auc:.1f}  precision at 20 px {100 * measures.precision_20:.1f}")
        for sequence, auc in zip(cars.sequences, measures.per_sequence, strict=True):
            print(f"  {sequence.name:<32} {100 * auc:.1f}")
        per_sequence = dict(zip([s.name for s in cars.sequences], map(float, measures.per_sequence), strict=True))
        figures[name] = {"success_auc": measures.success_auc, "precision_20": measures.precision_20, "per_sequence": per_sequence}
    if command.json:
        write_json(command.json, figures[names[0]] if len(names) == 1 else {"trackers": figures})
    if command.pictures:
        command.pictures.mkdir(parents=True, exist_ok=True)
        success_plot(drawn, command.pictures / "success.png", title=cars.name)
        for i, sequence in enumerate(cars.sequences):
            boxes = {name: trajectories[i].boxes for name, trajectories in tracked.items()}
            picture_strip(sequence, boxes, command.pictures / f"{Path(sequence.name).name}.png")
