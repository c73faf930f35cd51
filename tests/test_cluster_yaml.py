from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GPUS = {"g5.2xlarge": (8, 1), "g5.12xlarge": (48, 4), "p4d.24xlarge": (96, 8), "m5.xlarge": (4, 0)}
"""CPUs and GPUs of instance types, from the provider's tables."""


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def ray_validates(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    ray_validates(cluster)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(max_worker=3),
        lambda c: c.update(head_node_type="gpu"),
        lambda c: c["available_node_types"]["gpu_worker"].update(resources={"CPU": "eight"}),
        lambda c: c["available_node_types"]["gpu_worker"].update(min_workers=9),
    ],
)
def test_ray_would_notice(cluster: dict[str, Any], spoil: Any) -> None:
    config = copy.deepcopy(cluster)
    spoil(config)
    with pytest.raises(Exception):  # noqa: B017 - jsonschema's or Ray's own, depending on the mistake
        ray_validates(config)


def test_versions_are_those_of_the_project(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    setup = "\n".join(cluster["setup_commands"])
    pins = re.findall(r'"([a-z]+(?:\[[a-z,]+\])?==[\d.]+)"', setup)
    assert len(pins) >= 2
    assert set(pins) <= set(project)
    assert "-e ." in setup  # everything else from pyproject.toml, on head and workers alike


def test_nodes_offer_what_they_have(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = cluster["head_node_type"]
    for name, node in types.items():
        cpus, gpus = GPUS[node["node_config"]["InstanceType"]]
        assert node["resources"].get("GPU", 0) == gpus
        assert node["resources"]["CPU"] == (0 if name == head else cpus)
        assert ("InstanceMarketOptions" in node["node_config"]) == (name != head)  # spot for workers only
    assert sum(node.get("max_workers", 0) for name, node in types.items() if name != head) <= cluster["max_workers"] <= 16
    assert 1 <= cluster["idle_timeout_minutes"] <= 30


def test_start_commands_agree(cluster: dict[str, Any]) -> None:
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    (port,) = re.findall(r"--port=(\d+)", head)
    assert f"--address=$RAY_HEAD_IP:{port}" in worker
    assert "--num-cpus=0" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--dashboard-host=127.0.0.1" in head  # reached through `ray dashboard` or `ray submit`, never from outside
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0" in command


def test_token_reaches_every_node_and_is_not_in_the_file(cluster: dict[str, Any]) -> None:
    target = f"/home/{cluster['auth']['ssh_user']}/.ray/auth_token"
    assert cluster["file_mounts"][target] == "~/.ray/auth_token"
    assert not re.search(r"\b[0-9a-f]{32,}\b", (ROOT / "cluster.yaml").read_text())
