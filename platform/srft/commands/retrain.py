"""``srft retrain``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.config import ConfigError, Strategy, TrainConfig
from srft.settings import from_flat, parse_settings

if TYPE_CHECKING:
    from srft.evaluation.runner import Evaluation
    from srft.run_logging import Origin, StudyLog
    from srft.training.epoch import EpochReport


@dataclass(frozen=True, kw_only=True)
class Retrain:
    """Train a logged run again, longer and on more workers, with the settings that MLflow has of it; test, log and register it.

    srft retrain --study outputs/rgbe_sweep --epochs 12 --workers 2

    srft retrain --run 1c0e5f6b7a3d4e2f9b8a7c6d5e4f3a2b --tracking-uri http://server:5000 --workers 8 --strategy fsdp2 --out /shared/winner

    srft retrain --model models:/srft-rgbe@champion --tracking-uri http://server:5000 --epochs 40 --benchmark visevent=/data/VisEvent

    Rendered sequences and the prior are those of the run's study where its directory is on this machine, else made again. Each worker
    keeps the share of a batch that it had, so more workers make larger batches, and the learning rate grows in proportion
    (optim.lr_batch). The new run is linked to its origin; the registered model's alias champion moves to it if it is better on validation.
    """

    study: str = ""
    """Output directory or MLflow run id of a study, of which the winner is trained."""
    trial: int | None = None
    """Number of another trial of the study."""
    run: str = ""
    """MLflow run id of a trial or of a retraining."""
    model: str = ""
    """Registered model: models:/srft-rgbe@champion or models:/srft-rgbe/3."""
    epochs: int | None = None
    """Length, in the origin's epochs; three times as long when left out."""
    workers: int = 1
    """Training processes; more than one is a Ray Train run in the cluster of RAY_ADDRESS, or on this machine."""
    min_workers: int = 0
    """Fewest processes to go on with when nodes are lost; 0 waits for all."""
    strategy: Strategy = "ddp"
    """Each worker holds the whole network, or a shard of it."""
    batch_size: int | None = None
    """Pairs per step over all workers, instead of the origin's share for each; the learning rate follows in proportion."""
    set: tuple[str, ...] = ()
    """Other settings to replace, as key=value."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks to test on, as name=folder (visevent=/data/VisEvent), instead of the synthetic and shipped test sequences."""
    out: Path | None = None
    """Directory of the run; <study>-retrained, or outputs/<run>-retrained, when left out."""
    resume: bool = False
    """Go on with the run in --out."""
    tracking_uri: str | None = None
    """Any MLflow tracking URI; the default is the study's store, for --run and --model MLFLOW_TRACKING_URI, else outputs/mlflow.db."""


def settings(command: Retrain, origin: TrainConfig) -> TrainConfig:
    """The run: the origin's settings at the new scale, and what is replaced.

    Args:
        command: the options.
        origin: settings of the run that is trained again.

    Returns:
        The configuration. The learning rate is the origin's times the ratio of the batch sizes.
    """
    optim = origin.optim
    batch = -(-optim.batch_size // origin.workers) * max(1, command.workers)  # Fewer workers are refused by their own name.
    values: dict[str, Any] = {
        "name": f"{origin.name.removesuffix('-retrained')}-retrained",
        "workers": command.workers,
        "min_workers": command.min_workers,
        "strategy": command.strategy,
        "optim.epochs": 3 * optim.epochs if command.epochs is None else command.epochs,
        "optim.batch_size": batch if command.batch_size is None else command.batch_size,
        "optim.lr_batch": optim.lr_batch or optim.batch_size,
    }
    source = "--epochs, --batch-size, --workers, --min-workers, --strategy, --set"
    return from_flat(values | parse_settings(command.set), origin, source=source)


def run(command: Retrain) -> None:
    """Train, test, log, register.

    Args:
        command: the options.

    Raises:
        ConfigError: the run's checkpoints are gone, or a benchmark is not name=folder.

    A benchmark that does not exist is a DataError.
    """
    import functools
    from contextlib import nullcontext

    from srft.data.benchmarks.layouts import layout_of
    from srft.run_logging import find_origin, open_study
    from srft.training import checkpoint, home
    from srft.training.cluster import check_resources, cluster
    from srft.training.distributed import train
    from srft.training.step import run as step

    for text in command.benchmark:  # Before training, not after it.
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ConfigError(f"--benchmark {text!r}: expected name=folder, such as visevent=/data/VisEvent")
        layout_of(name)
        if not Path(folder).is_dir():
            raise ConfigError(f"--benchmark {text!r}: there is no folder {folder}")
    origin = find_origin(study=command.study, trial=command.trial, run=command.run, model=command.model, uri=command.tracking_uri)
    config = settings(command, origin.config)
    study = origin.directory if command.study and origin.directory else None
    out = (command.out or (study.with_name(f"{study.name}-retrained") if study else Path("outputs") / config.name)).resolve()
    if config.workers > 1:
        check_resources(config, 1)
    optim = config.optim
    print(f"origin       {origin.name} ({origin.run_id}) in {origin.store}")
    print(
        f"training     {optim.epochs} epochs on {config.workers} worker(s), batches of {optim.batch_size}, learning rate "
        f"{optim.lr * optim.batch_size / (optim.lr_batch or optim.batch_size):.2e}, in {out}",
        flush=True,
    )
    if (out / "study.json").exists():
        raise ConfigError(f"{out} holds a study; choose another directory (--out) for the run")
    home.claim(out, config, resume=command.resume)  # Before its log is opened, which of a finished run must stay as it is.
    cache = (origin.directory or out) / "cache"
    with (
        open_study(out, f"{config.data.modality}-retrain", {0: config}, digest=config.digest(), uri=origin.store) as run_log,
        cluster(dashboard=True) if config.workers > 1 else nullcontext(),
    ):
        run_log.start_trial(0)
        for index in (0, None):
            run_log.set_tags({"srft.origin": origin.run_id, "srft.origin_name": origin.name}, index=index)
        for record in checkpoint.history(out) if out.exists() else []:  # An epoch may have been saved and not logged.
            run_log.log_epoch(0, record["epoch"], record["metrics"])

        def show(report: EpochReport) -> None:
            run_log.log_epoch(0, report.epoch, report.metrics)
            m = report.metrics
            figures = f"loss {m['train/loss']:.3f}  val {m['val/success_auc']:.3f}  source {m['source/success_auc']:.3f}"
            print(f"epoch {report.epoch + 1}/{optim.epochs}  {figures}  {m['throughput/samples_per_s']:.0f} samples/s", flush=True)

        train(config, functools.partial(step, cache=cache), directory=out, on_epoch=show, resume=True)
        folder = checkpoint.best(out)
        if folder is None:
            raise ConfigError(f"{out}: no valid checkpoint is left; delete the directory and start again")
        tests = _benchmarks(command, folder, out, run_log) if command.benchmark else _sequences(config, folder, out, cache, run_log)
        _finish(config, folder, out, origin, tests, run_log)


def _sequences(config: TrainConfig, folder: Path, out: Path, cache: Path, run_log: StudyLog) -> dict[str, dict[str, float]]:
    from srft.evaluation.plots import success_plot
    from srft.evaluation.runner import evaluate
    from srft.evaluation.test_sets import test_sets
    from srft.training.step import tuned_tracker

    evaluation: Evaluation = evaluate(tuned_tracker(folder), test_sets(config.data, cache))
    pictures = out / "pictures"
    for name, measures in evaluation.measures.items():
        success_plot({"retrained": measures}, pictures / f"success_{name.replace(' ', '_')}.png", title=name)
    run_log.log_artifact(pictures, index=0, folder="pictures")
    return {name: {"success_auc": m.success_auc, "precision_20": m.precision_20} for name, m in evaluation.measures.items()}


def _benchmarks(command: Retrain, folder: Path, out: Path, run_log: StudyLog) -> dict[str, dict[str, float]]:
    import json

    from srft.commands import evaluate
    from srft.evaluation.protocols import protocol_of

    tests: dict[str, dict[str, float]] = {}
    for text in command.benchmark:
        name, _, root = text.partition("=")
        scores = out / "results" / f"{name}.json"
        scores.unlink(missing_ok=True)
        scored = protocol_of(name) is not None  # Else its results are for a server, or nobody's.
        results = out / "results"
        evaluate.run(
            evaluate.Evaluate(
                weights=(str(folder),), name=("retrained",), benchmark=name, root=Path(root), out=results, json=scores if scored else None
            )
        )
        if scored:
            tests[name] = json.loads(scores.read_text())["trackers"]["retrained"]
            run_log.log_artifact(scores, index=0, folder="results")
    return tests


def _finish(config: TrainConfig, folder: Path, out: Path, origin: Origin, tests: dict[str, dict[str, float]], run_log: StudyLog) -> None:
    from srft.evaluation.test_sets import logged_names
    from srft.files import write_json
    from srft.training import checkpoint

    score = (checkpoint.read_meta(folder).metrics or {})[checkpoint.METRIC]
    write_json(out / "result.json", {"checkpoint": str(folder), "origin": origin.run_id, "val_success_auc": score, "tests": tests})
    run_log.log_metrics(logged_names(tests), index=0)
    run_log.log_checkpoint(folder, index=0)
    run_log.end_trial(0, "FINISHED")
    model = f"srft-{config.data.modality}"
    version = run_log.register(0, model, score=score)
    for name, figures in tests.items():
        print(f"{name:<24} {'  '.join(f'{key} {100 * value:.1f}' for key, value in figures.items())}")
    print(f"validation   {100 * score:.1f} ({folder})")
    if version is not None:
        print(f"registered   {model} version {version}")
