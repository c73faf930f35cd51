"""The Ray cluster that training and search run in: connecting to it, starting one, and what fits into it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from srft.config import ConfigError, TrainConfig

__all__ = ["capacity", "check_resources", "cluster", "gpus"]


def capacity(workers: int, cpus_per_worker: int = 1, gpus_per_worker: float = 1.0) -> int:
    """How many trainings of this size fit at once into the cluster, counting the nodes its autoscaler may add.

    Args:
        workers: processes per training.
        cpus_per_worker: cores per process.
        gpus_per_worker: GPUs per process, in a cluster that has enough for one training; in others none is used.

    Returns:
        Number of trainings, 0 if not even one fits.
    """
    fits = int(_available("CPU") // (workers * cpus_per_worker))
    each = workers * gpus_per_worker
    return min(fits, int(gpus() / each + 1e-6)) if gpus() >= each else fits


def check_resources(config: TrainConfig, concurrency: int, *, cpus_per_worker: int = 1, gpus_per_worker: float = 1.0) -> None:
    """Refuse a start that would wait for processors for ever.

    Without a connection, what counts is the cluster that :func:`cluster` would start here; one that RAY_ADDRESS names is not asked before
    there is a connection, so check again then.

    Args:
        config: the run, or one like the runs that are to train at once.
        concurrency: how many of them train at once.
        cpus_per_worker: cores per process.
        gpus_per_worker: see :func:`capacity`.

    Raises:
        ConfigError: the cluster has too few CPUs or GPUs.
    """
    if os.environ.get("RAY_ADDRESS") and not _connected():
        return
    each = config.workers * gpus_per_worker
    needs = [("CPU", concurrency * config.workers * cpus_per_worker, cpus_per_worker, _available("CPU"))]
    needs += [("GPU", concurrency * each, gpus_per_worker, gpus())] if gpus() >= each else []
    for kind, needed, per_worker, found in needs:
        if needed > found + 1e-6:
            fits = capacity(config.workers, cpus_per_worker, gpus_per_worker)
            remedy = f"train at most {fits} at once" if fits else f"use at most {int(found // per_worker)} workers"
            raise ConfigError(
                f"the Ray cluster has {found:g} {kind}s, but {concurrency} training(s) of {config.workers} worker(s) "
                f"with {per_worker:g} {kind}(s) each need {needed:g}; {remedy}, or add nodes (ray start --num-{kind.lower()}s)"
            )


def _connected() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def gpus() -> float:
    """GPUs of the cluster this process is connected to, counting the nodes its autoscaler may add.

    Returns:
        Their number; 0 without a connection.
    """
    return _available("GPU")


def _available(kind: str) -> float:
    if not _connected():
        return float(len(os.sched_getaffinity(0))) if kind == "CPU" else 0.0
    import ray
    from ray._private.state import state

    growth = state.get_max_resources_from_cluster_config() or {}  # None unless the cluster has an autoscaler.
    return max(ray.cluster_resources().get(kind, 0.0), float(growth.get(kind, 0.0)))


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
            address="local",  # Not the last cluster that was started here, of which Ray keeps a note although it may be gone.
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
