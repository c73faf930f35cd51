"""Runs a study's trials with Ray Tune.

``queue`` decides who runs next and until when, and Ray Tune runs it; neither holds anything that a resumed study needs. Trials of one
worker train in processes that are used again for the next trial; trials of several workers are Ray Train runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.config import ConfigError
from srft.search.queue import Queue
from srft.search.record import TrialResult, claim, read_study, trial_directory
from srft.search.study import Study
from srft.search.watch import Progress, TrialLog, Watch
from srft.signals import interruptible
from srft.training import checkpoint
from srft.training.cluster import capacity, check_resources, cluster, gpus
from srft.training.distributed import Entry, train

if TYPE_CHECKING:
    from srft.training.epoch import EpochReport

__all__ = ["Progress", "StudyFailed", "TrialLog", "run_study"]

log = logging.getLogger(__name__)

_DRIVER_MEMORY = 2**20


class StudyFailed(ValueError):
    """One trial after the other failed; the message says why the last one did."""


def run_study(
    study: Study,
    entry: Entry,
    *,
    directory: Path,
    trial_log: TrialLog | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[TrialResult]:
    """Run a study's unfinished trials; trials that ended before are not repeated, those that were interrupted go on.

    A failed trial does not end the study.

    Args:
        study: the study.
        entry: what trains, see ``srft.training.distributed.train``.
        directory: of the study, on storage that all nodes share. Call ``claim`` first to refuse one that is in use already.
        trial_log: where starts, epochs and ends are written.
        on_progress: called for every epoch and end of a trial.

    Returns:
        What each trial has come to, by index; trials that a budget ended are still ``running`` and go on with the next session.

    Raises:
        StudyFailed: as many trials failed one after the other as the study allows.

    A directory of another study or a cluster with too few processors is a ConfigError. SIGINT and SIGTERM are a KeyboardInterrupt, after
    which the study can be resumed.
    """
    directory = directory.resolve()
    claim(study, directory, resume=True)
    record = read_study(directory)
    watch = Watch(study, directory, trial_log, on_progress, record.results)
    queue = Queue(study, directory, watch, record.generation)
    if queue:
        with cluster(dashboard=study.base.workers > 1), interruptible():
            sizes = study.base.workers, study.cpus_per_worker, study.gpus_per_worker
            concurrent = study.max_concurrent or min(study.size - len(watch.over), max(1, capacity(*sizes)))
            check_resources(study.base, concurrent, cpus_per_worker=study.cpus_per_worker, gpus_per_worker=study.gpus_per_worker)
            _tune(study, entry, directory, watch, queue, concurrent)
        queue.end()
    if watch.failed_in_a_row and study.max_failed and watch.failed_in_a_row >= study.max_failed:
        raise StudyFailed(f"study {study.name} ended: {queue.closed}; put that right and resume the study")
    if queue.closed:
        log.warning("study %s ended: %s; resume it with a larger budget to go on", study.name, queue.closed)
    return list(read_study(directory).results)


def _tune(study: Study, entry: Entry, directory: Path, watch: Watch, queue: Queue, concurrent: int) -> None:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ours ends the study at once; nothing of Tune's has to be saved.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # The other one prints tables whatever the verbosity.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # Misses the files of those loggers.
    # Complains that a busy machine starts processes slowly.
    logging.getLogger("ray.tune.utils.util").setLevel(logging.ERROR)
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    trials = watch.trials
    reserved: list[None] = []

    def index_of(trial: Any) -> int:
        return trial.config["index"]

    class Search(Searcher):
        """Asks the queue."""

        def suggest(self, trial_id: str) -> Any:
            turn = queue.next()
            if turn is None:
                return Searcher.FINISHED if queue.done else None
            return {"index": turn.trial.index, "until": turn.until, "trial": turn.trial}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            pass

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

        def __reduce__(self) -> tuple[Any, ...]:
            return type(None), ()

    class Scheduler(FIFOScheduler):
        """Ends trials with their epoch when a budget is used up."""

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            if not reserved:  # Tune keeps one idle process only, but several trials may end at once.
                controller = getattr(tune_controller, "_tune_controller", tune_controller)
                reserved.append(controller._actor_cache.increase_max(trial.placement_group_factory, concurrent))

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            index = index_of(trial)
            if result["replayed"] or result["finished_epochs"] >= trials[index].config.optim.epochs or not queue.spent():
                return TrialScheduler.CONTINUE
            watch.cut.add(index)
            return TrialScheduler.STOP

    class Callback(tune.Callback):
        """Passes Tune's events on."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.start(index_of(trial))

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            watch.epoch(index_of(trial), result["finished_epochs"] - 1, result["metrics"], replayed=result["replayed"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            queue.back(index := index_of(trial))
            watch.end(index, None, paused=queue.pauses(index))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            queue.back(index_of(trial))
            watch.end(index_of(trial), _last_line(trial))

    resources: Any
    if study.base.workers == 1:
        resources = {"cpu": float(study.cpus_per_worker), **({"gpu": study.gpus_per_worker} if gpus() >= study.gpus_per_worker else {})}
    else:  # Only waits for its workers: a CPU would be taken from them. Tune wants a resource; every node has memory.
        resources = tune.PlacementGroupFactory([{"memory": _DRIVER_MEMORY}])
    storage = directory / "tune"
    tuner = tune.Tuner(
        tune.with_resources(_trainable(study, entry, directory), resources),
        tune_config=tune.TuneConfig(
            search_alg=Search(),
            num_samples=-1,
            scheduler=Scheduler(),
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


def _last_line(trial: Any) -> str:
    # Tune's own accessor looks where the file is copied at the end of the study.
    path = Path(trial.error_file or "")
    lines = path.read_text().strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "unknown error"


def _trainable(study: Study, entry: Entry, directory: Path) -> Callable[[dict[str, Any]], None]:
    def trainable(sample: dict[str, Any]) -> None:
        from ray import tune

        trial, until = sample["trial"], sample["until"]
        home = trial_directory(directory, trial)
        known = checkpoint.history(home) if home.exists() else []
        for record in known:
            tune.report(_tune_result(study, record, replayed=True))

        def on_epoch(report: EpochReport) -> None:
            record = {"epoch": report.epoch, "step": report.step, "metrics": dict(report.metrics)}
            tune.report(_tune_result(study, record, replayed=False))

        # All epochs may be there and the entry not through: what it does after them may have failed.
        if len(known) < until or until == trial.config.optim.epochs:
            train(trial.config, entry, directory=home, on_epoch=on_epoch, resume=True, until=until, cpus_per_worker=study.cpus_per_worker)

    return trainable


def _tune_result(study: Study, record: dict[str, Any], *, replayed: bool) -> dict[str, Any]:
    for name in filter(None, (study.metric, study.second)):
        if name not in record["metrics"]:
            raise ConfigError(f"study {study.name}: metric is {name!r}; training reports {', '.join(sorted(record['metrics']))}")
    return {
        "finished_epochs": record["epoch"] + 1,
        "score": record["metrics"][study.metric],
        "metrics": record["metrics"],
        "replayed": replayed,
    }
