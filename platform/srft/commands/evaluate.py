"""``srft evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from srft.model.tracker import MultiModalTracker


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Track a benchmark, write result files as its official kit reads them, and score them.

    Results that are there are kept: the same command goes on where it was stopped. Without --benchmark, the shipped real recording
    (three cars, DAVIS346 event camera).

    srft evaluate outputs/winner/epoch_0011 --benchmark lasher --root /data/LasHeR --out results

    srft evaluate outputs/winner/epoch_0011 --benchmark visevent --root /data/VisEvent --split val --batch 32 --device cuda --precision bf16

    srft evaluate tiny_rgb --json scores.json --pictures pictures
    """

    weights: tyro.conf.Positional[str]
    """Name of shipped weights, a .safetensors file, or a checkpoint directory."""
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
    """Folder of result files; they are in <out>/<benchmark>/<name>."""
    name: str | None = None
    """Of the tracker in tables and file names; from the weights when left out."""
    batch: int = 16
    """Sequences in one forward pass."""
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


def run(command: Evaluate) -> None:
    """Track, score and print.

    Args:
        command: the options.

    Raises:
        ValueError: a benchmark comes without its folder.
    """
    if command.benchmark is None:
        _cars(command)
    elif command.root is None:
        raise ValueError(f"--benchmark {command.benchmark} without --root; give the folder that it was downloaded to")
    else:
        _benchmark(command, command.benchmark, command.root)


def _tracker(command: Evaluate) -> tuple[MultiModalTracker, str, str]:
    # The network, the checksum of its weights, and a name.
    import torch

    from srft.files import sha256
    from srft.model.pretrained import load_tracker, weights_path
    from srft.training.step import tuned_tracker

    folder = Path(command.weights)
    inside = folder.is_dir()
    network = tuned_tracker(folder) if inside else load_tracker(command.weights)
    file = folder / "weights.safetensors" if inside else weights_path(command.weights)
    named = f"{folder.resolve().parent.name}-{folder.name}" if inside else Path(command.weights).stem
    device = command.device if command.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return network.to(device), sha256(file)[:16], command.name or named


def _benchmark(command: Evaluate, benchmark: str, root: Path) -> None:
    import time

    from tqdm import tqdm

    from srft.evaluation.benchmark import plan, score_runs, track_runs
    from srft.files import write_json

    network, weights, name = _tracker(command)
    rgb_only = command.rgb_only or network.streams == 1
    work = plan(
        benchmark,
        root,
        command.out / benchmark / name,
        weights=weights,
        split=command.split,
        list_name=command.list_name,
        modality="rgb" if rgb_only else None,
        precision=command.precision,
        names=command.sequences,
    )
    kept = f", {len(work.runs) - len(work.todo)} of them are there already" if len(work.todo) < len(work.runs) else ""
    print(f"{name} on {benchmark}, split {command.split}: {len(work.runs)} runs{kept}, {work.frames} frames to track", flush=True)
    started = time.perf_counter()
    with tqdm(total=work.frames, desc=name, unit="frame", disable=None) as bar:
        failures = track_runs(network, work, batch=command.batch, precision=command.precision, on_frames=bar.update)
    if work.frames:
        print(f"{work.frames / (time.perf_counter() - started):.1f} frames/s, result files in {work.folder}")
    for failure in failures:
        print(f"failed       {failure.run.sequence.name}: {failure.error}")
    if len(failures) == len(work.runs):
        raise ValueError(f"none of {len(failures)} runs could be tracked")
    scores = score_runs(work, command.protocol, allow_missing=bool(failures))
    if scores is not None:
        figures = scores.trackers[name].measures
        print(f"{scores.protocol.benchmark}, protocol {scores.protocol.name}, {len(scores.sequences)} sequences")
        print("  ".join(f"{measure} {100 * value:.2f}" for measure, value in figures.items()))
        for note in scores.notes:
            print(f"note: {note}")
        if command.json:
            write_json(command.json, scores.to_json())
    if failures:
        raise ValueError(f"{len(failures)} of {len(work.runs)} runs failed; put their files right and give the same command again")


def _cars(command: Evaluate) -> None:
    from srft.data import davis_cars
    from srft.evaluation.plots import picture_strip, success_plot
    from srft.evaluation.runner import TestSet, evaluate
    from srft.files import write_json

    network, _, name = _tracker(command)
    cars = TestSet(name="DAVIS cars", sequences=tuple(davis_cars.load()), rgb_only=command.rgb_only)
    evaluation = evaluate(network, [cars])
    measures = evaluation.measures[cars.name]
    print(f"success AUC {100 * measures.success_auc:.1f}  precision at 20 px {100 * measures.precision_20:.1f}")
    for sequence, auc in zip(cars.sequences, measures.per_sequence, strict=True):
        print(f"  {sequence.name:<32} {100 * auc:.1f}")
    if command.json:
        per_sequence = dict(zip([s.name for s in cars.sequences], map(float, measures.per_sequence), strict=True))
        figures = {"success_auc": measures.success_auc, "precision_20": measures.precision_20, "per_sequence": per_sequence}
        write_json(command.json, figures)
    if command.pictures:
        command.pictures.mkdir(parents=True, exist_ok=True)
        success_plot({name: measures}, command.pictures / "success.png", title=cars.name)
        for sequence, trajectory in zip(cars.sequences, evaluation.trajectories[cars.name], strict=True):
            picture_strip(sequence, {name: trajectory.boxes}, command.pictures / f"{Path(sequence.name).name}.png")
