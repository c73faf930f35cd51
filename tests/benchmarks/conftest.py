"""Cost of the method against what it is added to. Without options everything runs once on the smallest network, so that it keeps working.

uv run pytest tests/benchmarks --benchmark-enable --preset base --batch 8 --benchmark-json tests/benchmarks/results.json
"""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cost")
    group.addoption("--preset", default="tiny", help="size of the network that is measured")
    group.addoption("--batch", type=int, default=2, help="pairs in a step")
    group.addoption("--rank", type=int, default=8, help="eigenpairs per operation")
    group.addoption("--threads", type=int, default=1, help="of torch")
    group.addoption("--pairs", type=int, default=4, help="pairs that a Fisher is estimated from")


def pytest_benchmark_update_machine_info(config, machine_info):
    cpu = machine_info["cpu"]
    machine_info.clear()
    machine_info.update({"cpu": cpu.get("brand_raw"), "cores": cpu.get("count"), "vector units": torch.backends.cpu.get_cpu_capability()})
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = config.getoption("--threads", 1)


@pytest.fixture(scope="session")
def sizes(request):
    """What is measured, as given on the command line."""
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads", 1))
    yield {
        name: request.config.getoption(f"--{name}", default)
        for name, default in (("preset", "tiny"), ("batch", 2), ("rank", 8), ("threads", 1), ("pairs", 4))
    }
    torch.set_num_threads(threads)
