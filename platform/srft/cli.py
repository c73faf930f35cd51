"""The command line: ``srft train`` and ``srft evaluate``. Thin: parses, calls, prints."""

from __future__ import annotations

import functools
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from srft.config import ConfigError, TrainConfig, from_flat, load
from srft.training import checkpoint


@dataclass(frozen=True, kw_only=True)
class Train:
    """Fine-tune one tracker.

    srft train --config outputs/rgbe_sweep/best.json --out outputs/winner --set optim.epochs=20
    srft train --config outputs/rgbe_sweep/best.json --out outputs/winner --set optim.epochs=20 --workers 2 --resume
    """

    config: Path | None = None
    """JSON file of dotted keys, such as a sweep's best.json; the defaults when left out."""
    out: Path = Path("outputs/train")
    """Directory of the run: checkpoints, and cache/ with rendered data and the prior."""
    set: tuple[str, ...] = ()
    """Settings to replace, as key=value: --set optim.lr=1e-4 srft.rank=32."""
    workers: int | None = None
    """Training processes; more than one is a Ray Train run."""
    resume: bool = False
    """Go on from the newest valid checkpoint in --out."""


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


def main() -> None:
    """Entry point of the ``srft`` command; a wrong setting is one sentence and exit status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    command = tyro.cli(
        Annotated[Train, tyro.conf.subcommand("train")] | Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
        prog="srft",
        description="Sensitivity-regularized fine-tuning of visual object trackers.",
    )
    try:
        if isinstance(command, Train):
            _train(command)
        else:
            _evaluate(command)
    except (ConfigError, checkpoint.CheckpointError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command with --resume goes on")


def parse_settings(settings: tuple[str, ...], base: TrainConfig) -> TrainConfig:
    """Replace settings of a run.

    Args:
        settings: ``key=value``; values are JSON, or words.
        base: the run.

    Returns:
        The changed run.

    Raises:
        ConfigError: a setting has no ``=``, an unknown key or a value out of range.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting!r} has no '='; expected key=value, such as optim.lr=1e-4")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return from_flat(values, base, source="--set")


def _train(command: Train) -> None:
    config = load(command.config) if command.config else TrainConfig()
    if command.workers is not None:
        config = from_flat({"workers": command.workers}, config, source="--workers")
    config = parse_settings(command.set, config)

    from srft.training.distributed import cluster, train
    from srft.training.step import EpochReport, prepare, run

    def show(report: EpochReport) -> None:
        m = report.metrics
        print(
            f"epoch {report.epoch + 1}/{config.optim.epochs}  loss {m['train/loss']:.3f}  val {m['val/success_auc']:.3f}"
            f"  source {m['source/success_auc']:.3f}  {m['throughput/samples_per_s']:.0f} samples/s",
            flush=True,
        )

    cache = (command.out / "cache").resolve()
    entry = functools.partial(run, cache=cache)
    if config.workers == 1:
        train(config, entry, directory=command.out, on_epoch=show, resume=command.resume)
    else:
        prepare(config, cache)
        with cluster(dashboard=True):
            train(config, entry, directory=command.out, on_epoch=show, resume=command.resume)
    print(f"best checkpoint  {checkpoint.best(command.out)}")


def _evaluate(command: Evaluate) -> None:
    from srft.data import davis_cars
    from srft.evaluation.plots import picture_strip, success_plot
    from srft.evaluation.runner import TestSet, evaluate
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
        checkpoint.write_json(command.json, figures)
    if command.pictures:
        command.pictures.mkdir(parents=True, exist_ok=True)
        success_plot({folder.name: measures}, command.pictures / "success.png", title=cars.name)
        for sequence, trajectory in zip(cars.sequences, evaluation.trajectories[cars.name], strict=True):
            picture_strip(sequence, {folder.name: trajectory.boxes}, command.pictures / f"{Path(sequence.name).name}.png")


if __name__ == "__main__":
    main()
