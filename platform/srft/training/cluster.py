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

__all__ = ["capacity", "check_resources", "cluster"]


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

    Without a connection, what counts is the cluster that :func:`cluster` would start here; one that RAY_ADDRESS names is not asked before
    there is a connection, so check again then.

    Args:
        config: the run, or one like the runs that are to train at once.
        concurrency: how many of them train at once.
        cpus_per_worker: cores per process.

    Raises:
        ConfigError: the cluster has too few CPUs.
    """
    if os.environ.get("RAY_ADDRESS") and not _connected():
        return
    needed = concurrency * config.workers * cpus_per_worker
    found = _cpus()
    if needed > found:
        fits = capacity(config.workers, cpus_per_worker)
        remedy = f"train at most {fits} at once" if fits else f"use at most {int(found // cpus_per_worker)} workers"
        raise ConfigError(
            f"the Ray cluster has {found:g} CPUs, but {concurrency} training(s) of {config.workers} worker(s) "
            f"with {cpus_per_worker} CPU(s) each need {needed}; {remedy}, or add nodes (ray start --num-cpus)"
        )


def _connected() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _cpus() -> float:
    if not _connected():
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
