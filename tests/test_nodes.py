"""Nodes that go and nodes that come: a second node of the session's cluster is killed while it trains."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from srft.config import OptimConfig, SRFTConfig, TrainConfig
from srft.training import distributed
from tests.conftest import RayCluster, free_ports, stop_group
from tests.toy_training import toy_entry

CONFIG = TrainConfig(
    name="nodes",
    workers=2,
    min_workers=1,
    srft=SRFTConfig(refresh=2),
    optim=OptimConfig(batch_size=8, epochs=40, steps_per_epoch=4, lr=0.01),
)


def start_node(cluster: RayCluster, home: Path) -> "subprocess.Popen[bytes]":
    """A node of 3 CPUs, as many as one of the run's workers takes; the head's 4 are enough for one."""
    agent, metrics = free_ports(2)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={cluster.address}", "--num-cpus=3"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", f"--object-store-memory={80 * 2**20}"),
        *("--disable-usage-stats", "--log-style=record", "--node-ip-address=127.0.0.1"),
    ]
    environment = {**os.environ, "PYTHONPATH": cluster.environment["PYTHONPATH"]}
    log = (home / "node.log").open("wb")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_for_cpus(count: int, log: Path) -> None:
    import ray

    deadline = time.monotonic() + 60
    while ray.cluster_resources().get("CPU", 0) < count:
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


@pytest.mark.ray
@pytest.mark.long
def test_an_elastic_run_outlives_a_node_and_grows_onto_a_new_one(
    tmp_path: Path, ray_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_NEW_NODES_EVERY", 5.0)
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
    nodes = [start_node(ray_cluster, homes[0])]
    wait_for_cpus(7, homes[0] / "node.log")
    seen: list[Any] = []

    def on_epoch(report: Any) -> None:
        seen.append((report.epoch, report.metrics["world_size"]))
        if report.epoch == 1:
            os.killpg(nodes[0].pid, signal.SIGKILL)
        if report.metrics["world_size"] == 1 and len(nodes) == 1:
            nodes.append(start_node(ray_cluster, homes[1]))

    try:
        entry = partial(toy_entry, pause=2.0)
        last = distributed.train(CONFIG, entry, directory=tmp_path / "run", on_epoch=on_epoch, cpus_per_worker=3, worker_timeout=20.0)
    finally:
        for node in nodes:
            stop_group(node)
    assert [epoch for epoch, _ in seen] == list(range(CONFIG.optim.epochs))  # nothing twice, nothing left out
    sizes = [size for _, size in seen]
    assert sizes[0] == 2
    assert 1 in sizes
    assert sizes[-1] == 2, sizes
    one = TrainConfig(name="nodes", srft=CONFIG.srft, optim=CONFIG.optim)
    alone = distributed.train(one, toy_entry, directory=tmp_path / "alone")
    assert last.metrics["weight"] == pytest.approx(alone.metrics["weight"], rel=1e-5)
