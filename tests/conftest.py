"""One Ray cluster for the whole session: real processes, tokens on, dashboard on (job submission needs it), gone afterwards."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Ray reads these once, when it is first imported, which a test that needs no cluster may do long before the cluster starts.
os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # The networks are small, and many tests run several processes.
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take minutes (marked long)")


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None) and config.option.dist not in ("loadgroup", "no"):
        raise pytest.UsageError(f"--dist={config.option.dist}: the Ray tests share one cluster; leave --dist=loadgroup as it is")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Of the processes that share the tests, one has the cluster; the tests of a file stay together, for what its fixtures make.
        cluster = item.get_closest_marker("ray") or item.get_closest_marker("long") or "ray_head" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("ray" if cluster else item.path.name))
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --long"))


@dataclasses.dataclass(frozen=True)
class RayCluster:
    """Where the session's cluster is, and the environment that programs which use it need."""

    address: str
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, outside the range that Ray's workers draw from (10002 to 19999)."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
    finally:
        for probe in sockets:
            probe.close()


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and its descendants: by group and by parentage, never by name."""
    family = [process.pid, *descendants(process.pid)]
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def descendants(pid: int) -> list[int]:
    """Processes below a process, at this moment."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayCluster]:
    """A `ray start --head` cluster of 4 logical CPUs. This process is not connected to it."""
    home = Path(tempfile.mkdtemp(prefix="srft", dir="/tmp"))  # Short: paths of Unix sockets end at 107 characters.
    port, dashboard, agent, metrics, client = free_ports(5)
    environment = {
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT), str(ROOT / "tests")]),
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
        *(f"--ray-client-server-port={client}", "--num-cpus=4", f"--object-store-memory={128 * 2**20}", f"--temp-dir={home / 'ray'}"),
        *("--disable-usage-stats", "--log-style=record"),
    ]
    kept = {key: os.environ.get(key) for key in environment}
    log = (home / "head.log").open("wb")
    settings = {key: value for key, value in environment.items() if key not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    head = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True)
    try:
        os.environ.update(environment)
        _wait_for_start(head, home / "head.log")
        yield RayCluster(address=environment["RAY_ADDRESS"], dashboard=environment["RAY_API_SERVER_ADDRESS"], environment=environment)
    finally:
        stop_group(head)
        log.close()
        shutil.rmtree(home, ignore_errors=True)
        for key, value in kept.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@pytest.fixture(scope="session")
def ray_cluster(ray_head: RayCluster) -> Iterator[RayCluster]:
    """The session's cluster, with this process connected to it."""
    import ray

    ray.init(
        address=ray_head.address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"RAY_ADDRESS": ray_head.address, "PYTHONPATH": ray_head.environment["PYTHONPATH"]}},
    )
    try:
        yield ray_head
    finally:
        ray.shutdown()


def _wait_for_start(head: subprocess.Popen[bytes], log: Path, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and head.poll() is None:
        if b"Ray runtime started" in log.read_bytes():
            return
        time.sleep(0.2)
    pytest.fail(f"the Ray head did not start in {seconds:.0f} s:\n{log.read_text()[-3000:]}", pytrace=False)
