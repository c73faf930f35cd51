"""``srft evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Track the shipped real recording (three cars, DAVIS346 event camera) and score it.

    srft evaluate tiny_rgb

    srft evaluate outputs/winner/epoch_0019 --json scores.json --pictures pictures
    """

    weights: tyro.conf.Positional[str]
    """Name of shipped weights, a .safetensors file, or a checkpoint directory."""
    json: Path | None = None
    """Write the measures here."""
    pictures: Path | None = None
    """Write a success plot and picture strips here."""
    rgb_only: bool = False
    """Leave the events out."""


def run(command: Evaluate) -> None:
    """Track, score and print.

    Args:
        command: the options.
    """
    from srft.data import davis_cars
    from srft.evaluation.plots import picture_strip, success_plot
    from srft.evaluation.runner import TestSet, evaluate
    from srft.files import write_json
    from srft.model.pretrained import load_tracker
    from srft.training.step import tuned_tracker

    folder = Path(command.weights)
    network = tuned_tracker(folder) if folder.is_dir() else load_tracker(command.weights)
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
        success_plot({folder.name: measures}, command.pictures / "success.png", title=cars.name)
        for sequence, trajectory in zip(cars.sequences, evaluation.trajectories[cars.name], strict=True):
            picture_strip(sequence, {folder.name: trajectory.boxes}, command.pictures / f"{Path(sequence.name).name}.png")
