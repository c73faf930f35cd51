"""Training on one or several workers: in this process, or as a Ray Train run of one process per worker.

Checkpoints are the run directory's own (see ``checkpoint``), written by rank 0, so the directory lies on storage that every node
shares. Ray Train starts the workers and starts them again when one dies; each start goes on from the newest valid checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from srft.config import ConfigError, TrainConfig
from srft.training import checkpoint, sparsity_actor

if TYPE_CHECKING:
    from srft.training.step import EpochReport, Worker

__all__ = ["Entry", "capacity", "check_resources", "cluster", "train"]

log = logging.getLogger(__name__)

_RAY_TRAIN_ENVIRONMENT = {
    # Polls of the workers; also how soon a dead one is noticed.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # Importing torch in every worker at once takes most of the default minute on a small machine.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    # Would print every line of a worker twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Logs an error at every start, though nothing is wrong.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


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
    cpus_per_worker: int = 1,
    max_failures: int = 2,
    worker_timeout: float = 600.0,
) -> EpochReport:
    """Run one training; one worker trains in this process, more are a Ray Train run in the cluster this process is connected to.

    Args:
        config: the run; ``config.workers`` processes.
        entry: what each worker runs.
        directory: of the run, on storage shared by all nodes; refused when it holds another configuration.
        on_epoch: called in this process once per finished epoch, in order. Raising ends the call; the workers end with this process.
        resume: go on from the directory's newest valid checkpoint; without it a directory that was used before is refused.
        cpus_per_worker: cores, and threads, of each worker of several.
        max_failures: how often the worker group is started again after a worker failed.
        worker_timeout: seconds after which workers give up on one that hangs.

    Returns:
        The last epoch's report.
    """
    directory = directory.resolve()
    report = on_epoch or (lambda _: None)
    if config.workers == 1:
        from srft.training.step import Worker

        checkpoint.claim(directory, config, resume=resume)
        return entry(config, directory=directory, worker=Worker(), on_epoch=report, resume=True)

    check_resources(config, 1, cpus_per_worker=cpus_per_worker)
    checkpoint.claim(directory, config, resume=resume)
    return _train_with_ray(
        config,
        entry,
        directory=directory,
        report=report,
        cpus_per_worker=cpus_per_worker,
        max_failures=max_failures,
        worker_timeout=worker_timeout,
    )


def _train_with_ray(
    config: TrainConfig,
    entry: Entry,
    *,
    directory: Path,
    report: Callable[[EpochReport], None],
    cpus_per_worker: int,
    max_failures: int,
    worker_timeout: float,
) -> EpochReport:
    for key, value in _RAY_TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray
    from ray.train import LoggingConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer
    from ray.util.queue import Empty, Queue

    # Ray Train goes on silently with whatever a run of the same name and path left, so no two starts share a name.
    run_name = f"{config.name}-{config.digest()}-{time.time_ns():x}"
    gpu = ray.cluster_resources().get("GPU", 0) >= config.workers
    actor = sparsity_actor.start(run_name)
    reports = Queue(actor_options={"num_cpus": 0})
    storage = directory / "ray"
    trainer: Any = TorchTrainer(
        _worker_loop,
        train_loop_config={"config": config, "entry": entry, "directory": directory, "reports": reports, "actor": actor},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=math.ceil(worker_timeout)),
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=gpu, resources_per_worker={"CPU": cpus_per_worker, **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
            worker_runtime_env={"env_vars": {**_RAY_TRAIN_ENVIRONMENT, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}},
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
    thread.start()
    newest = max((record["epoch"] for record in checkpoint.history(directory)), default=-1)
    try:
        while True:
            running = thread.is_alive()
            try:
                epoch_report = reports.get(timeout=0.5)
            except Empty:
                if not running:
                    break
                continue
            if epoch_report.epoch > newest:  # A restarted worker group repeats the epoch it lost.
                newest = epoch_report.epoch
                report(epoch_report)
    finally:
        reports.shutdown(force=True)
        ray.kill(actor)
    error = outcome.get("error") or outcome["last"]
    if isinstance(error, Exception):
        raise error
    shutil.rmtree(storage, ignore_errors=True)
    return outcome["last"]


def _worker_loop(setup: dict[str, Any]) -> EpochReport | Exception:
    import ray.train
    import torch.distributed as dist
    from ray.train.torch import get_device
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from srft.training.step import EpochReport, Worker

    config: TrainConfig = setup["config"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    group = dist.new_group(backend="gloo")

    def broadcast(value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=cast(dist.ProcessGroup, group))
        return box[0]

    def gather(value: Any) -> list[Any]:
        box: list[Any] = [None] * world_size
        dist.all_gather_object(box, value, group=cast(dist.ProcessGroup, group))
        return box

    device = get_device()

    def wrap(module: nn.Module) -> nn.Module:
        return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)

    def on_epoch(report: EpochReport) -> None:
        if rank == 0:
            setup["reports"].put(report)

    exchange = sparsity_actor.RayExchange(
        actor=setup["actor"],
        attempt=broadcast(time.time_ns()),
        rank=rank,
        world_size=world_size,
        refresh=config.srft.refresh,
        broadcast=broadcast,
    )
    if rank == 0:  # A worker may have died between an epoch's checkpoint and its report.
        for record in checkpoint.history(setup["directory"]):
            setup["reports"].put(EpochReport(**record))
    worker = Worker(rank=rank, world_size=world_size, wrap=wrap, gather=gather, statistics=exchange, device=device)
    entry: Entry = setup["entry"]
    try:
        return entry(config, directory=setup["directory"], worker=worker, on_epoch=on_epoch, resume=True)
    except (ConfigError, FloatingPointError) as error:  # All workers meet it, and would meet it again: not worth a restart.
        return error


def capacity(workers: int, cpus_per_worker: int = 1) -> int:
    """How many trainings of this size fit at once into the cluster, counting the nodes its autoscaler may add.

    Args:
        workers: processes per training.
        cpus_per_worker: cores per process.

    Returns:
        Number of trainings, 0 if not even one fits.
    """
    return int(_cpus() // (workers * cpus_per_worker))


def check_resources(config: TrainConfig, concurrency: int, *, cpus_per_worker: int = 1) -> None:
    """Refuse a start that would wait for processors for ever.

    Without a connection and without RAY_ADDRESS, what counts is the cluster that :func:`cluster` would start here.

    Args:
        config: the run, or one like the runs that are to train at once.
        concurrency: how many of them train at once.
        cpus_per_worker: cores per process.

    Raises:
        ConfigError: the cluster has too few CPUs.
    """
    needed = concurrency * config.workers * cpus_per_worker
    found = _cpus()
    if needed > found:
        fits = capacity(config.workers, cpus_per_worker)
        remedy = f"train at most {fits} at once" if fits else f"use at most {int(found // cpus_per_worker)} workers"
        raise ConfigError(
            f"the Ray cluster has {found:g} CPUs, but {concurrency} training(s) of {config.workers} worker(s) "
            f"with {cpus_per_worker} CPU(s) each need {needed}; {remedy}, or add nodes (ray start --num-cpus)"
        )


def _cpus() -> float:
    if not os.environ.get("RAY_ADDRESS") and not ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        return float(len(os.sched_getaffinity(0)))
    import ray
    from ray._private.state import state

    growth = state.get_max_resources_from_cluster_config() or {}  # None unless the cluster has an autoscaler.
    return max(ray.cluster_resources().get("CPU", 0.0), float(growth.get("CPU", 0.0)))


@contextlib.contextmanager
def cluster(*, dashboard: bool = False) -> Iterator[str]:
    """Connect to the Ray cluster that this process is already connected to or that RAY_ADDRESS names, else start one for this process.

    A cluster that was started here, and all its processes, is gone when the context ends.

    Args:
        dashboard: also start the dashboard in a cluster of our own; Ray Train's clean-up asks it, and complains every second without.

    Yields:
        Address of the cluster.

    Raises:
        ConfigError: RAY_ADDRESS names a cluster that does not answer.
    """
    # Ray would build the whole environment again for each worker when this process was started by `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": os.environ.get("SRFT_RAY_LOGS", "") == "1"}
    address = os.environ.get("RAY_ADDRESS")
    ours = not address
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"RAY_ADDRESS is {address!r}: {error}; start that cluster, or unset RAY_ADDRESS to use this machine alone"
            ) from None
    else:
        # Says at every start that tokens are on, as they should be.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        # Two clusters on one machine mistake each other's processes for their own unless every process knows its address.
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        address = f"{ray.util.get_node_ip_address()}:{port}"
        os.environ["RAY_GCS_SERVER_PORT"] = str(port)
        ray.init(
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=dashboard,
            object_store_memory=256 * 2**20,
            runtime_env={"env_vars": {"RAY_ADDRESS": address}},
            **quiet,
        )
        os.environ["RAY_ADDRESS"] = address
    try:
        yield address
    finally:
        ray.shutdown()
        if ours:
            os.environ.pop("RAY_ADDRESS", None)
            os.environ.pop("RAY_GCS_SERVER_PORT", None)
