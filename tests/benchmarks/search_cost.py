"""What a study costs beside its training, and what early stopping saves.

    OMP_NUM_THREADS=1 PYTHONPATH=platform:. python tests/benchmarks/search_cost.py overhead halving leaderboard --out results.json

``overhead``: seconds per trial of one worker beyond its training, after the first. ``halving``: a study of 16 trials that stops
those behind (ASHA) against all 16 trained to the end, over several seeds; what is trained is a small network on scikit-learn's
handwritten digits, so that settings matter as they do. ``leaderboard``: seconds of ``srft study`` on 300 trials with MLflow runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from srft.config import TrainConfig
from srft.files import environment, write_json
from srft.search.record import best, claim, record_end, trial_directory
from srft.search.space import Choice, LogUniform, Space, srft_space
from srft.search.study import Study
from srft.settings import from_flat
from srft.training import checkpoint

DIGITS = Space(
    {
        "optim.lr": LogUniform(1e-4, 0.9),
        "optim.weight_decay": LogUniform(1e-6, 1e-1),
        "optim.batch_size": Choice((16, 64, 256)),
        "optim.grad_clip": LogUniform(0.01, 10.0),
    }
)


def digits(config: TrainConfig, *, directory: Path, worker: Any, on_epoch: Any, resume: bool) -> Any:
    """Train 64-64-10 units on 1,200 digits by SGD with momentum; ``val/accuracy`` is of the other 597."""
    import torch
    from sklearn.datasets import load_digits

    from srft.training.epoch import EpochReport

    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(config.seed)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optim = config.optim
    optimizer = torch.optim.SGD(network.parameters(), lr=optim.lr, momentum=0.9, weight_decay=optim.weight_decay)
    for epoch in range(optim.epochs):
        order = torch.randperm(1200, generator=torch.Generator().manual_seed(1000 * config.seed + epoch))
        for rows in order.split(optim.batch_size):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), optim.grad_clip)
            optimizer.step()
        with torch.no_grad():
            right = (network(images[1200:]).argmax(1) == labels[1200:]).double().mean()
        report = EpochReport(epoch=epoch, step=epoch + 1, metrics={"val/accuracy": float(right)})
        progress = checkpoint.Progress(epoch=epoch, step=epoch + 1, metrics=report.metrics)
        checkpoint.begin(directory, progress)
        checkpoint.commit(directory, progress, config=config, weights=network.state_dict(), state={})
        on_epoch(report)
    return report


def timed_toy(config: TrainConfig, *, directory: Path, **others: Any) -> Any:
    """The tests' toy training of a quarter of a second an epoch; writes down how long it took."""
    from tests.toy_training import toy_entry

    began = time.monotonic()
    try:
        return toy_entry(config, directory=directory, pause=0.25, **others)
    finally:
        write_json(directory / "trained.json", time.monotonic() - began)


def measure_overhead(trials: int = 10) -> dict[str, Any]:
    """From the end of one trial to the end of the next, less the training in between; one trial at a time, logged to MLflow."""
    import json

    from srft.run_logging import open_study
    from srft.search.tuning import Progress, run_study

    out = Path(tempfile.mkdtemp())
    base = from_flat({"optim.epochs": 4, "optim.steps_per_epoch": 1, "optim.batch_size": 2})
    space = Space({"srft.kappa": LogUniform(0.5, 2.0)})
    study = Study(name="overhead", base=base, space=space, num_samples=trials, early_stopping=False, max_concurrent=1)
    ends: list[float] = []
    began = time.monotonic()

    def note(progress: Progress) -> None:
        if progress.state == "finished":
            ends.append(time.monotonic())

    configs = {trial.index: trial.config for trial in study.trials()}
    claim(study, out, resume=False)
    with open_study(out, "overhead", configs, digest=study.digest(), uri=f"sqlite:///{out}/mlflow.db") as log:
        found = run_study(study, partial(timed_toy), directory=out, trial_log=log, on_progress=note)
    trained = [json.loads((result.directory / "trained.json").read_text()) for result in found]
    beyond = [ends[i] - ends[i - 1] - trained[i] for i in range(1, trials)]
    shutil.rmtree(out)
    return {
        "trials": trials,
        "first_s": ends[0] - began - trained[0],
        "median_s": statistics.median(beyond),
        "max_s": max(beyond),
        "trained_s": statistics.median(trained),
    }


def measure_halving(seeds: int = 6, epochs: int = 16) -> dict[str, Any]:
    """Score and epochs of 16 trials, with those behind stopped, by score and epochs of all trained to the end; two at a time."""
    from srft.search.tuning import run_study
    from srft.training.cluster import cluster
    from srft.training.distributed import train

    rows = []
    with cluster():
        for seed in range(seeds):
            out = Path(tempfile.mkdtemp())
            base = from_flat({"optim.epochs": epochs, "seed": seed})
            study = Study(
                name="digits", base=base, space=DIGITS, num_samples=16, seed=seed, metric="val/accuracy", reduction=2, max_concurrent=2
            )
            stopped = run_study(study, partial(digits), directory=out / "asha")
            scores = []
            for trial in study.trials():
                metrics: list[float] = []
                train(
                    trial.config,
                    digits,
                    directory=out / "all" / trial.name,
                    on_epoch=lambda report, to=metrics: to.append(report.metrics["val/accuracy"]),
                )
                scores.append(max(metrics))
            winner = best(stopped)
            rows.append(
                {
                    "seed": seed,
                    "score": winner.score,
                    "best_of_all": max(scores),
                    "ratio": winner.score / max(scores),
                    "median_of_all": statistics.median(scores),
                    "epochs": sum(len(result.history) for result in stopped),
                    "share_of_epochs": sum(len(result.history) for result in stopped) / (16 * epochs),
                }
            )
            shutil.rmtree(out)
    return {
        "trials": 16,
        "epochs": epochs,
        "seeds": rows,
        "worst_ratio": min(row["ratio"] for row in rows),
        "largest_share": max(row["share_of_epochs"] for row in rows),
    }


def measure_leaderboard(trials: int = 300, epochs: int = 4) -> dict[str, Any]:
    """Wall seconds of the command, a process of its own, median of three; and of handing an epoch's metrics to the log."""
    from srft.run_logging import open_study

    out = Path(tempfile.mkdtemp())
    study = Study(name="large", base=from_flat({"optim.epochs": epochs}), space=srft_space(), num_samples=trials)
    claim(study, out, resume=False)
    handing = []
    configs = {trial.index: trial.config for trial in study.trials()}
    with open_study(out, "large", configs, digest=study.digest(), uri=f"sqlite:///{out}/mlflow.db") as log:
        for trial in study.trials():
            home = trial_directory(out, trial)
            log.start_trial(trial.index)
            for epoch in range(epochs):
                metrics = {"val/success_auc": trial.config.srft.kappa / 9 + epoch / 90, "source/success_auc": trial.config.optim.lr}
                progress = checkpoint.Progress(epoch=epoch, step=epoch, metrics=metrics)
                if epoch == epochs - 1:
                    checkpoint.begin(home, progress)
                    checkpoint.commit(home, progress, config=trial.config, weights={}, state={})
                began = time.perf_counter()
                log.log_epoch(trial.index, epoch, metrics)
                handing.append(time.perf_counter() - began)
            record_end(home, "finished", seconds=1.0)
            log.end_trial(trial.index, "FINISHED", {"srft.end": "finished"})
        log.flush(300)

    def seconds(*options: str) -> float:
        walls = []
        for _ in range(3):
            began = time.monotonic()
            subprocess.run([sys.executable, "-m", "srft.cli", "study", str(out), *options], check=True, stdout=subprocess.DEVNULL)
            walls.append(time.monotonic() - began)
        return statistics.median(walls)

    found = {"trials": trials, "study_s": seconds(), "study_with_plots_s": seconds("--plots", str(out / "plots"))}
    shutil.rmtree(out)
    return found | {"log_epoch_median_s": statistics.median(handing), "log_epoch_max_s": max(handing)}


PARTS = {"overhead": measure_overhead, "halving": measure_halving, "leaderboard": measure_leaderboard}


def main() -> None:
    """Measure the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown")
    found: dict[str, Any] = {}
    for part in options.parts:
        found[part] = PARTS[part]() | {"machine": f"{cpu}, {os.cpu_count()} cores", "environment": environment()}
        print({key: value for key, value in found[part].items() if key != "environment"}, flush=True)
        if options.out:
            write_json(options.out, found)


if __name__ == "__main__":
    from tests.benchmarks import search_cost  # Whose functions other processes can import.

    search_cost.main()
