"""Training on one or several workers: in this process, or as a Ray Train run of one process per worker.

Checkpoints are the run directory's own (see ``checkpoint``), written by rank 0, so the directory lies on storage that every node
shares. Ray Train starts the workers and starts them again when one dies; each start goes on from the newest valid checkpoint.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from srft.config import ConfigError, TrainConfig
from srft.signals import politely
from srft.training import checkpoint, home, sparsity_actor
from srft.training.cluster import check_resources, gpus

if TYPE_CHECKING:
    from srft.training.step import EpochReport, Worker
    from srft.training.worker import Notice

__all__ = ["Entry", "train"]

log = logging.getLogger(__name__)

_RAY_TRAIN_ENVIRONMENT = {
    # Polls of the workers; also how soon a dead one is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # Importing torch in every worker at once takes most of the default minute on a small machine.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    # Would print every line of a worker twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
_NEW_NODES_EVERY = 60.0
"""Seconds between looks for nodes that an elastic run could grow onto; growing costs it what it did since its last checkpoint."""
_PATIENCE_AT_END = 120.0
"""Seconds that workers have for their last checkpoint once they were told to end."""


class Entry(Protocol):
    """What one worker runs: loads its data, then ``srft.training.step.fine_tune``. Importable by name (module level, or a partial)."""

    def __call__(
        self, config: TrainConfig, *, directory: Path, worker: Worker, on_epoch: Callable[[EpochReport], None], resume: bool
    ) -> EpochReport:
        """Train as one of ``worker.world_size`` workers.

        Args:
            config: the run.
            directory: of its checkpoints, written by rank 0.
            worker: which worker this is and how it reaches the others.
            on_epoch: called after each epoch's checkpoint is complete.
            resume: go on from the newest valid checkpoint.

        Returns:
            The last epoch's report.
        """
        ...


def train(
    config: TrainConfig,
    entry: Entry,
    *,
    directory: Path,
    on_epoch: Callable[[EpochReport], None] | None = None,
    resume: bool = False,
    until: int = 0,
    cpus_per_worker: int = 1,
    max_failures: int = 2,
    worker_timeout: float = 600.0,
) -> EpochReport:
    """Run one training; one worker trains in this process, more are a Ray Train run in the cluster this process is connected to.

    Args:
        config: the run; ``config.workers`` processes.
        entry: what each worker runs.
        directory: of the run, on storage shared by all nodes; refused when it holds another configuration.
        on_epoch: called in this process once per finished epoch, in order. Raising ends the call, and the workers.
        resume: go on from the directory's newest valid checkpoint; without it a directory that was used before is refused.
        until: epochs after which to end although there are more, to be resumed; 0 trains all.
        cpus_per_worker: cores, and threads, of each worker of several.
        max_failures: how often the worker group is started again after a worker failed, or everything after the process that leads
            the workers died.
        worker_timeout: seconds after which workers give up on one that hangs.

    Returns:
        The last epoch's report. SIGTERM or SIGINT, in the main thread, save a checkpoint and are then a KeyboardInterrupt; a second one is
        one at once.

    Raises:
        RuntimeError: the process that leads the workers died more than ``max_failures`` times.
    """
    directory = directory.resolve()
    report = on_epoch or (lambda _: None)
    if config.workers == 1:
        from srft.training.step import Worker

        home.claim(directory, config, resume=resume)
        with home.occupied(directory), politely() as told:
            worker = Worker(told=lambda: "end" if told.is_set() else "")
            try:
                return entry(config, directory=directory, worker=worker, on_epoch=_ending(config, until, report), resume=True)
            except _Enough as enough:
                return enough.report

    check_resources(config, 1, cpus_per_worker=cpus_per_worker)
    home.claim(directory, config, resume=resume)
    newest = max((record["epoch"] for record in checkpoint.history(directory)), default=-1)

    def once(epoch_report: EpochReport) -> None:
        nonlocal newest
        if epoch_report.epoch > newest:  # What is started again repeats the epoch it lost.
            newest = epoch_report.epoch
            report(epoch_report)

    died = 0
    while True:
        try:
            with home.occupied(directory):
                return _train_with_ray(
                    config,
                    entry,
                    directory=directory,
                    report=once,
                    until=until,
                    cpus_per_worker=cpus_per_worker,
                    max_failures=max_failures,
                    worker_timeout=worker_timeout,
                )
        except _ControllerDied as error:
            died += 1
            if died > max_failures:
                raise RuntimeError(f"{directory}: the process that leads the workers died {died} times; --resume goes on") from error
            log.warning("the process that leads the workers died; starting again from the newest checkpoint")


def _train_with_ray(
    config: TrainConfig,
    entry: Entry,
    *,
    directory: Path,
    report: Callable[[EpochReport], None],
    until: int,
    cpus_per_worker: int,
    max_failures: int,
    worker_timeout: float,
) -> EpochReport:
    import ray
    from ray.exceptions import RayActorError
    from ray.train import LoggingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer
    from ray.util.queue import Empty, Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Watching for notices that a node will go logs an error at every start, and with one node nobody is left to save.
    watch = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": str(int(len(ray.nodes()) > 1))}
    environment = {key: os.environ.get(key, value) for key, value in (_RAY_TRAIN_ENVIRONMENT | watch).items()}
    os.environ.update(environment)
    # Ray Train goes on silently with whatever a run of the same name and path left, so no two starts share a name.
    run_name = f"{config.name}-{config.digest()}-{time.time_ns():x}"
    gpu = gpus() >= config.workers  # Those that an autoscaler will add, too.
    actor = sparsity_actor.start(run_name)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})  # Lives as long as this process, whatever other nodes do.
    storage = directory / "ray"
    trainer: Any = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "config": config,
            "entry": entry,
            "directory": directory,
            "reports": reports,
            "actor": actor,
            "timeout": worker_timeout,
            "until": until,
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=math.ceil(worker_timeout)),
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, config.workers) if config.min_workers else config.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if gpu else {})},
            elastic_resize_monitor_interval_s=_NEW_NODES_EVERY,
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
            worker_runtime_env={"env_vars": {**environment, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}},
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["last"] = trainer.fit().return_value
        except Exception as error:
            outcome["error"] = error

    # In a thread: reports are handled here, where Ray Tune expects them, while the run goes on.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    announced = sparsity_actor.announce(directory, run_name)
    thread.start()
    give_up = math.inf
    try:
        with politely() as told:
            while True:
                running = thread.is_alive()
                if told.is_set() and give_up == math.inf:
                    actor.end.remote()
                    give_up = time.monotonic() + _PATIENCE_AT_END
                if time.monotonic() > give_up:
                    raise KeyboardInterrupt
                try:
                    epoch_report = reports.get(timeout=0.5)
                except Empty:
                    if not running:
                        break
                    continue
                report(epoch_report)
    finally:
        announced.unlink(missing_ok=True)
        reports.shutdown(force=True)
        ray.kill(actor)
    last = outcome.get("error") or outcome["last"]
    if isinstance(last, RayActorError):
        raise _ControllerDied from last
    if isinstance(last, BaseException):
        raise last
    shutil.rmtree(storage, ignore_errors=True)
    return last


class _ControllerDied(Exception):
    """Ray Train's own process is gone, and its workers with it."""


class _Enough(Exception):
    """As many epochs as were asked for are done."""

    def __init__(self, report: EpochReport) -> None:
        super().__init__()
        self.report = report


def _ending(config: TrainConfig, until: int, on_epoch: Callable[[EpochReport], None]) -> Callable[[EpochReport], None]:
    def call(report: EpochReport) -> None:
        on_epoch(report)
        if until and until <= report.epoch + 1 < config.optim.epochs:
            raise _Enough(report)

    return call


def _worker_loop(setup: dict[str, Any]) -> EpochReport | BaseException:
    import ray.train
    import torch.distributed as dist
    from ray.train.torch import get_device

    from srft.training.epoch import EpochReport, Told
    from srft.training.worker import broadcast_over, worker_of_group

    config: TrainConfig = setup["config"]
    rank, world_size = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=setup["timeout"]))
    leaving: set[str] = set()

    def told() -> Notice:
        notice: Notice = broadcast_over(group, "end" if rank == 0 and sparsity_actor.ending(setup["actor"]) else "")
        if not notice and os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "1":
            info = ray.train.get_preemption_info()
            if info is not None and not leaving >= set(info.preempted_node_ids):
                leaving.update(info.preempted_node_ids)
                return "save"
        return notice

    def on_epoch(report: EpochReport) -> None:
        if rank == 0:
            setup["reports"].put(report)

    exchange = sparsity_actor.RayExchange(
        actor=setup["actor"],
        attempt=broadcast_over(group, time.time_ns()),
        rank=rank,
        world_size=world_size,
        refresh=config.srft.refresh,
        broadcast=lambda answer: broadcast_over(group, answer),
    )
    if rank == 0:  # A worker may have died between an epoch's checkpoint and its report.
        for record in checkpoint.history(setup["directory"]):
            setup["reports"].put(EpochReport(**record))
    worker = worker_of_group(config, device=get_device(), group=group, statistics=exchange, told=told)
    entry: Entry = setup["entry"]
    try:
        ending = _ending(config, setup["until"], on_epoch)
        return entry(config, directory=setup["directory"], worker=worker, on_epoch=ending, resume=True)
    except _Enough as enough:
        return enough.report
    except (ConfigError, FloatingPointError, Told) as error:  # All workers meet it, and would meet it again: not worth a restart.
        return error
