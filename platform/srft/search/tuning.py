"""Runs a study's trials with Ray Tune.

Ray Tune decides who runs next and who is stopped; it holds nothing that a resumed study needs. Trials of one worker train in
processes that are used again for the next trial; trials of several workers are Ray Train runs.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from srft.config import ConfigError
from srft.search.study import Study, Trial, TrialResult, TrialState, claim, forget_end, record_end, results, trial_directory
from srft.training import checkpoint
from srft.training.cluster import capacity, check_resources, cluster
from srft.training.distributed import Entry, train

if TYPE_CHECKING:
    from srft.training.step import EpochReport

__all__ = ["Progress", "TrialLog", "run_study"]

_DRIVER_MEMORY = 2**20


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One thing that happened in a study, and where the study stands."""

    trial: Trial
    state: TrialState
    epoch: int
    """Epochs this trial has finished."""
    metrics: dict[str, float]
    ended: int
    """Trials that have ended."""
    total: int
    elapsed: float
    """Seconds since the study was started or resumed."""
    eta: float
    """Seconds until the end if no more trial is stopped early; not-a-number before the second epoch."""


class TrialLog(Protocol):
    """Where a study writes what happens; ``srft.run_logging.StudyLog`` is one."""

    def start_trial(self, index: int) -> None:
        """A trial starts, or starts again."""
        ...

    def log_epoch(self, index: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial finished an epoch (from 0); one that was logged before is ignored."""
        ...

    def end_trial(self, index: int, state: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str]) -> None:
        """A trial ended."""
        ...


def run_study(
    study: Study,
    entry: Entry,
    *,
    directory: Path,
    trial_log: TrialLog | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[TrialResult]:
    """Run a study's unfinished trials; trials that ended before are not repeated, those that were interrupted go on.

    Trials of one worker train in processes that are used again for the next trial; trials of several workers are Ray Train runs.
    A failed trial does not end the study.

    Args:
        study: the study.
        entry: what trains, see ``srft.training.distributed.train``.
        directory: of the study, on storage that all nodes share. Call ``claim`` first to refuse one that is in use already.
        trial_log: where starts, epochs and ends are written.
        on_progress: called for every epoch and end of a trial.

    Returns:
        What each trial has come to, by index.

    A directory of another study or a cluster with too few CPUs is a ConfigError. SIGINT and SIGTERM are a KeyboardInterrupt, after
    which the study can be resumed.
    """
    directory = directory.resolve()
    claim(study, directory, resume=True)
    done = results(study, directory)
    watch = _Watch(study, directory, trial_log, on_progress, done)
    if watch.unfinished:
        with cluster(dashboard=study.base.workers > 1), _interruptible():
            concurrent = study.max_concurrent or min(len(watch.unfinished), max(1, capacity(study.base.workers, study.cpus_per_worker)))
            check_resources(study.base, concurrent, cpus_per_worker=study.cpus_per_worker)
            _tune(study, entry, directory, watch, done, concurrent)
    return results(study, directory)


class _Watch:
    """Follows the trials in the process that started the study: log, progress and the record of each end."""

    def __init__(
        self,
        study: Study,
        directory: Path,
        trial_log: TrialLog | None,
        on_progress: Callable[[Progress], None] | None,
        done: list[TrialResult],
    ) -> None:
        self.study, self.directory, self.log, self.on_progress = study, directory, trial_log, on_progress
        self.trials = {result.trial.index: result.trial for result in done}
        self.unfinished = [result.trial.index for result in done if result.state not in ("finished", "stopped")]
        self.epochs = {result.trial.index: len(result.history) for result in done}
        self.over = {result.trial.index for result in done} - set(self.unfinished)
        self.metrics: dict[int, dict[str, float]] = {result.trial.index: result.metrics for result in done}
        self.started: dict[int, float] = {}
        self.began = time.monotonic()
        self.epochs_here = 0
        self.first_epoch = math.nan
        if trial_log:
            for result in done:  # The process may have died between the end of a trial and the log's taking note of it.
                if result.state in ("finished", "stopped"):
                    for record in result.history:
                        trial_log.log_epoch(result.trial.index, record["epoch"], record["metrics"])
                    trial_log.end_trial(result.trial.index, "FINISHED", {"srft.end": result.state})

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks for a restore that studies do without, and a log is a live connection.
        return type(None), ()

    def start(self, index: int) -> None:
        self.started.setdefault(index, time.monotonic())
        if self.log:
            self.log.start_trial(index)

    def epoch(self, index: int, epoch: int, metrics: dict[str, float], *, replayed: bool) -> None:
        self.epochs[index], self.metrics[index] = epoch + 1, metrics
        if self.log:
            self.log.log_epoch(index, epoch, metrics)
        if not replayed:
            self.epochs_here += 1
            if self.epochs_here == 1:
                self.first_epoch = time.monotonic()
            self._tell(index, "running")

    def end(self, index: int, error: str | None) -> None:
        state: TrialState
        if error is not None:
            state = "failed"
        else:
            state = "finished" if self.epochs[index] >= self.trials[index].config.optim.epochs else "stopped"
        home = trial_directory(self.directory, self.trials[index])
        record_end(home, state, seconds=time.monotonic() - self.started[index], error=error or "")
        self.over.add(index)
        if self.log:
            tags = {"srft.end": state, **({"srft.error": error} if error else {})}
            self.log.end_trial(index, "FAILED" if state == "failed" else "FINISHED", tags)
        self._tell(index, state)

    def _tell(self, index: int, state: TrialState) -> None:
        if not self.on_progress:
            return
        elapsed = time.monotonic() - self.began
        left = sum(max(0, self.trials[i].config.optim.epochs - self.epochs[i]) for i in self.unfinished if i not in self.over)
        self.on_progress(
            Progress(
                trial=self.trials[index],
                state=state,
                epoch=self.epochs[index],
                metrics=self.metrics[index],
                ended=len(self.over),
                total=len(self.trials),
                elapsed=elapsed,
                eta=(time.monotonic() - self.first_epoch) / (self.epochs_here - 1) * left if self.epochs_here > 1 else math.nan,
            )
        )


def _tune(study: Study, entry: Entry, directory: Path, watch: _Watch, done: list[TrialResult], concurrent: int) -> None:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ours ends the study at once; nothing of Tune's has to be saved.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # The other one prints tables whatever the verbosity.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # Misses the files of those loggers.
    # Complains that a busy machine starts processes slowly.
    logging.getLogger("ray.tune.utils.util").setLevel(logging.ERROR)
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    epochs, trials = study.base.optim.epochs, watch.trials

    def index_of(trial: Any) -> int:
        return trial.config["index"]

    class Scheduler(ASHAScheduler):
        """Successive halving among the drawn trials."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if trials[index_of(trial)].fixed or result["finished_epochs"] >= trials[index_of(trial)].config.optim.epochs:
                return TrialScheduler.CONTINUE
            return super().on_trial_result(tune_controller, trial, result)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self._trial_info.pop(trial.trial_id, None)

    class Callback(tune.Callback):
        """Passes Tune's events on."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.start(index_of(trial))

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            watch.epoch(index_of(trial), result["finished_epochs"] - 1, result["metrics"], replayed=result["replayed"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.end(index_of(trial), None)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            lines = str(trial.get_error() or "unknown error").strip().splitlines()
            watch.end(index_of(trial), lines[-1] if lines else "unknown error")

    scheduler = Scheduler(
        time_attr="finished_epochs",
        metric="score",
        mode="max",
        max_t=max(epochs, study.grace_epochs),
        grace_period=study.grace_epochs,
        reduction_factor=study.reduction,
        stop_last_trials=False,
    )
    nobody: Any = None
    for result in done:  # Trials that ended in an earlier session keep their places on the rungs.
        if result.state in ("finished", "stopped"):
            stand_in: Any = SimpleNamespace(trial_id=f"earlier-{result.trial.index}", config={"index": result.trial.index})
            scheduler.on_trial_add(nobody, stand_in)
            for record in result.history:
                scheduler.on_trial_result(nobody, stand_in, _tune_result(study, record, replayed=True))

    for index in watch.unfinished:
        forget_end(trial_directory(directory, trials[index]))
    resources: Any
    if study.base.workers == 1:
        resources = {"cpu": float(study.cpus_per_worker), **({"gpu": 1.0} if _has_gpu() else {})}
    else:  # Only waits for its workers: a CPU would be taken from them. Tune wants a resource; every node has memory.
        resources = tune.PlacementGroupFactory([{"memory": _DRIVER_MEMORY}])
    storage = directory / "tune"
    tuner = tune.Tuner(
        tune.with_resources(_trainable(study, entry, directory, trials), resources),
        param_space={"index": tune.grid_search(list(watch.unfinished))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=concurrent,
            # Importing torch once per process, not once per trial. Not with workers: ending the process is what ends them.
            reuse_actors=study.base.workers == 1,
            trial_name_creator=lambda trial: trials[index_of(trial)].name,
            trial_dirname_creator=lambda trial: f"{index_of(trial):03d}",
        ),
        run_config=tune.RunConfig(
            name=f"session-{time.time_ns():x}",
            storage_path=str(storage),
            failure_config=tune.FailureConfig(max_failures=study.max_failures),
            callbacks=[Callback()],
            verbose=0,
        ),
    )
    tuner.fit()
    shutil.rmtree(storage, ignore_errors=True)


def _trainable(study: Study, entry: Entry, directory: Path, trials: dict[int, Trial]) -> Callable[[dict[str, Any]], None]:
    def trainable(sample: dict[str, Any]) -> None:
        from ray import tune

        trial = trials[sample["index"]]
        home = trial_directory(directory, trial)
        known = checkpoint.history(home) if home.exists() else []
        for record in known:
            tune.report(_tune_result(study, record, replayed=True))

        def on_epoch(report: EpochReport) -> None:
            record = {"epoch": report.epoch, "step": report.step, "metrics": dict(report.metrics)}
            tune.report(_tune_result(study, record, replayed=False))

        if len(known) < trial.config.optim.epochs:
            train(trial.config, entry, directory=home, on_epoch=on_epoch, resume=True, cpus_per_worker=study.cpus_per_worker)

    return trainable


def _tune_result(study: Study, record: dict[str, Any], *, replayed: bool) -> dict[str, Any]:
    if study.metric not in record["metrics"]:
        raise ConfigError(f"study {study.name}: metric is {study.metric!r}; training reports {', '.join(sorted(record['metrics']))}")
    return {
        "finished_epochs": record["epoch"] + 1,
        "score": record["metrics"][study.metric],
        "metrics": record["metrics"],
        "replayed": replayed,
    }


def _has_gpu() -> bool:
    import ray

    return ray.cluster_resources().get("GPU", 0) >= 1


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, as `ray job stop` sends it, ends the study like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
