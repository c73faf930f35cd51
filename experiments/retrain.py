"""Train a sweep's winner again, longer and on more workers, with the settings that the sweep wrote down.

    uv run experiments/retrain.py outputs/rgbe_sweep --epochs 12 --workers 2
    uv run experiments/retrain.py outputs/rgbe_sweep --epochs 40 --workers 8 --strategy fsdp2 --set optim.precision=bf16
    uv run experiments/retrain.py outputs/rgbe_sweep --trial 5 --out outputs/fifth

Rendered sequences and the prior are the sweep's; checkpoints, result.json and pictures/ go to --out (<study>-retrained). The run is
logged where the sweep's runs are, and registered: the alias `champion` moves to it if it is better on validation. `--resume` goes on.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from leaderboard import describe, say, table
from srft.config import ConfigError, Strategy, TrainConfig
from srft.files import write_json
from srft.settings import from_flat, load, parse_settings
from srft.training.cluster import check_resources, cluster
from sweep import test_sets

if TYPE_CHECKING:
    from srft.run_logging import StudyLog
    from srft.training.epoch import EpochReport


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Train a sweep's winner again."""

    study: tyro.conf.Positional[Path]
    """Directory of the sweep."""
    trial: int | None = None
    """Number of a trial to train instead of the winner."""
    epochs: int = 12
    """Length, in the sweep's epochs."""
    workers: int = 1
    """Training processes; more than one is a Ray Train run in the cluster of RAY_ADDRESS, or on this machine."""
    min_workers: int = 0
    """Fewest processes to go on with when nodes are lost; 0 waits for all."""
    strategy: Strategy = "ddp"
    """Each worker holds the whole network, or a shard of it."""
    set: tuple[str, ...] = ()
    """Other settings to replace, as key=value."""
    out: Path | None = None
    """Directory of the run; <study>-retrained when left out."""
    resume: bool = False
    """Go on with the run in --out."""
    tracking_uri: str | None = None
    """Any MLflow tracking URI; the default is MLFLOW_TRACKING_URI, else the sweep's own database."""


def settings(command: Retrain) -> TrainConfig:
    """The run: the sweep's settings, and what is replaced.

    Args:
        command: the options.

    Returns:
        The configuration.

    Raises:
        ConfigError: the directory holds no finished sweep, or no such trial.
    """
    try:
        board = json.loads((command.study / "leaderboard.json").read_text())
    except FileNotFoundError:
        raise ConfigError(f"{command.study} holds no finished sweep (leaderboard.json is missing); finish it with --resume first") from None
    config = load(command.study / "best.json")
    if command.trial is not None:
        if not 0 <= command.trial < len(board["trials"]):
            raise ConfigError(f"--trial is {command.trial}; {command.study} has trials 0 to {len(board['trials']) - 1}")
        config = from_flat(board["trials"][command.trial]["config"], source=f"trial {command.trial} of {command.study}")
    layout = {"workers": command.workers, "min_workers": command.min_workers, "strategy": command.strategy}
    return parse_settings(command.set, from_flat({**layout, "optim.epochs": command.epochs, "name": f"{config.name}-retrained"}, config))


def main(command: Retrain) -> None:
    """Train, test, log, register.

    Args:
        command: the options.

    Raises:
        ConfigError: the run's checkpoints are gone.
    """
    config = settings(command)
    out = (command.out or command.study.with_name(f"{command.study.resolve().name}-retrained")).resolve()
    if config.workers > 1:
        check_resources(config, 1)
    say(f"{describe(config)}: {config.optim.epochs} epochs on {config.workers} worker(s) in {out}")

    from srft.run_logging import open_study, store_uri
    from srft.training import checkpoint
    from srft.training.distributed import train
    from srft.training.step import run

    uri = store_uri(command.study.resolve(), command.tracking_uri)
    cache = command.study.resolve() / "cache"
    params = {"study": str(command.study), "trial": "winner" if command.trial is None else command.trial}
    with (
        open_study(out, f"{config.data.modality}-retrain", {0: config}, digest=config.digest(), uri=uri, params=params) as run_log,
        cluster(dashboard=True) if config.workers > 1 else nullcontext(),
    ):
        run_log.start_trial(0)
        for record in checkpoint.history(out) if out.exists() else []:  # An epoch may have been saved and not logged.
            run_log.log_epoch(0, record["epoch"], record["metrics"])

        def show(report: EpochReport) -> None:
            run_log.log_epoch(0, report.epoch, report.metrics)
            m = report.metrics
            figures = f"loss {m['train/loss']:.3f}  val {m['val/success_auc']:.3f}  source {m['source/success_auc']:.3f}"
            say(f"epoch {report.epoch + 1}/{config.optim.epochs}  {figures}  {m['throughput/samples_per_s']:.0f} samples/s")

        train(config, functools.partial(run, cache=cache), directory=out, on_epoch=show, resume=command.resume)
        folder = checkpoint.best(out)
        if folder is None:
            raise ConfigError(f"{out}: no valid checkpoint is left; delete the directory and start again")
        report(config, folder, out, cache, command.study, run_log)


def report(config: TrainConfig, folder: Path, out: Path, cache: Path, study: Path, run_log: StudyLog) -> None:
    """Test the best checkpoint beside what the sweep had; print, write, log and register.

    Args:
        config: the run.
        folder: its best checkpoint.
        out: directory of the run.
        cache: the sweep's rendered sequences.
        study: the sweep.
        run_log: of the run.
    """
    from srft.evaluation.plots import success_plot
    from srft.evaluation.runner import evaluate
    from srft.training import checkpoint
    from srft.training.step import tuned_tracker

    sets = test_sets(config, cache)
    say(f"testing {folder.name} on {', '.join(s.name for s in sets)}")
    evaluation = evaluate(tuned_tracker(folder), sets)
    tests = {name: {"success_auc": m.success_auc, "precision_20": m.precision_20} for name, m in evaluation.measures.items()}
    score = (checkpoint.read_meta(folder).metrics or {})[checkpoint.METRIC]
    write_json(out / "result.json", {"checkpoint": str(folder), "val_success_auc": score, "tests": tests})
    pictures = out / "pictures"
    for name, measures in evaluation.measures.items():
        success_plot({"retrained": measures}, pictures / f"success_{name.replace(' ', '_')}.png", title=name)
    flat = {f"test/{name.replace(' ', '_')}/{key}": value for name, figures in tests.items() for key, value in figures.items()}
    run_log.log_metrics(flat, index=0)
    run_log.log_artifact(folder, index=0, folder="checkpoint")
    run_log.log_artifact(pictures, index=0, folder="pictures")
    run_log.end_trial(0, "FINISHED")
    version = run_log.register(0, f"srft-{config.data.modality}", folder="checkpoint", score=score)

    show = lambda figures: f"{100 * figures['success_auc']:.1f} / {100 * figures['precision_20']:.1f}"
    before: list[dict[str, Any]] = json.loads((study / "leaderboard.json").read_text())["trackers"]
    body = [[line["tracker"], *(show(line["tests"][name]) for name in tests)] for line in before]
    body.append(["retrained", *(show(figures) for figures in tests.values())])
    print("\n" + "\n".join(table(["tracker", *tests], body)))
    print(f"\nvalidation   {100 * score:.1f} ({folder})")
    if version is not None:
        print(f"registered   srft-{config.data.modality} version {version}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        main(tyro.cli(Retrain, description=__doc__))
    except (ConfigError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command with --resume goes on")
