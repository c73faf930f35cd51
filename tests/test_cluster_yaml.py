from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LAUNCHED = {"aws": ROOT / "cluster.yaml", "gcp": ROOT / "docs/cluster/gcp.yaml", "local": ROOT / "docs/cluster/on_premise.yaml"}
KUBERAY = ROOT / "docs/cluster/kuberay.yaml"
NODES = {"g5.2xlarge": (8, 1), "m5.xlarge": (4, 0), "g2-standard-8": (8, 1), "n2-standard-4": (4, 0)}
"""CPUs and GPUs of instance types, from the providers' tables."""
CLOUDS = ("aws", "gcp")
PINNED = r'"([a-z]+(?:\[[a-z,]+\])?==[\d.]+)"'


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(LAUNCHED[name].read_text())


def dependencies() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def ray_validates(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_it(name: str) -> None:
    cluster = read(name)
    assert cluster["provider"]["type"] == name
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
def test_ray_would_notice(spoil: Any) -> None:
    config = read("aws")
    spoil(config)
    with pytest.raises(Exception):  # noqa: B017 - jsonschema's or Ray's own, depending on the mistake
        ray_validates(config)


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_jobs_python_is_the_environments(name: str) -> None:
    """Ray runs a job's command with the PATH that it was started with."""
    cluster = read(name)
    for node in ("head", "worker"):
        start = cluster[f"{node}_start_ray_commands"][-1]
        path = re.search(r"PATH=(\S+):\$PATH (\S+)/ray start ", start)
        assert path, start
        assert path[1] == path[2] == "~/env/bin"
        assert any(f"{path[1]}/python -c" in command for command in cluster["setup_commands"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_versions_are_those_of_the_project(name: str) -> None:
    setup = "\n".join(read(name)["setup_commands"])
    pins = re.findall(PINNED, setup)
    assert len(pins) >= 2
    assert set(pins) <= set(dependencies())
    assert "-e ." in setup  # everything else from pyproject.toml, on head and workers alike


@pytest.mark.parametrize("name", CLOUDS)
def test_nodes_offer_what_they_have(name: str) -> None:
    cluster = read(name)
    types = cluster["available_node_types"]
    head = cluster["head_node_type"]
    for node_type, node in types.items():
        made = node["node_config"]
        cpus, gpus = NODES[made["InstanceType"] if name == "aws" else made["machineType"]]
        assert node["resources"].get("GPU", 0) == gpus
        assert node["resources"]["CPU"] == (0 if node_type == head else cpus)
        spot = "InstanceMarketOptions" in made if name == "aws" else {"provisioningModel": "SPOT"} in made.get("scheduling", [])
        assert spot == (node_type != head)
    assert sum(node.get("max_workers", 0) for node_type, node in types.items() if node_type != head) <= cluster["max_workers"] <= 16
    assert 1 <= cluster["idle_timeout_minutes"] <= 30


def test_machines_of_ones_own_are_all_used() -> None:
    cluster = read("local")
    assert cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_start_commands_agree(name: str) -> None:
    cluster = read(name)
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    (port,) = re.findall(r"--port=(\d+)", head)
    assert f"--address=$RAY_HEAD_IP:{port}" in worker
    assert "--num-cpus=0" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--dashboard-host=127.0.0.1" in head  # reached through `ray dashboard` or `ray submit`, never from outside
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0" in command


@pytest.mark.parametrize("name", LAUNCHED)
def test_token_and_sources_reach_every_node_and_the_token_is_not_in_the_file(name: str) -> None:
    cluster = read(name)
    home = f"/home/{cluster['auth']['ssh_user']}"
    assert cluster["file_mounts"] == {f"{home}/.ray/auth_token": "~/.ray/auth_token", f"{home}/srft": "."}
    assert not re.search(r"\b[0-9a-f]{32,}\b", LAUNCHED[name].read_text())


FIELDS: dict[str, dict[str, type]] = {
    "job": {
        **{"entrypoint": str, "submissionMode": str, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int},
        **{"backoffLimit": int, "activeDeadlineSeconds": int, "runtimeEnvYAML": str, "rayClusterSpec": dict},
    },
    "cluster": {
        **{"rayVersion": str, "enableInTreeAutoscaling": bool, "autoscalerOptions": dict, "authOptions": dict},
        **{"headGroupSpec": dict, "workerGroupSpecs": list, "gcsFaultToleranceOptions": dict},
    },
    "autoscaler": {"version": str, "idleTimeoutSeconds": int, "upscalingMode": str, "resources": dict, "env": list},
    "auth": {"mode": str, "secretName": str},
    "head": {"rayStartParams": dict, "template": dict, "serviceType": str},
    "workers": {
        **{"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict, "template": dict},
        **{"idleTimeoutSeconds": int, "numOfHosts": int},
    },
}
"""Fields of KubeRay's resources that may appear, by its API reference (ray.io/v1)."""


def conforms(what: str, found: dict[str, Any]) -> None:
    for key, value in found.items():
        assert key in FIELDS[what], f"{what}: unknown field {key}"
        assert type(value) is FIELDS[what][key], f"{what}.{key} is {value!r}"


def test_the_operator_of_kubernetes_would_accept_it() -> None:
    claim, job = yaml.safe_load_all(KUBERAY.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    for what, found in (
        *(("job", spec), ("cluster", cluster), ("autoscaler", cluster["autoscalerOptions"]), ("auth", cluster["authOptions"])),
        *(("head", head), *(("workers", group) for group in workers)),
    ):
        conforms(what, found)
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert cluster["autoscalerOptions"]["upscalingMode"] in ("Default", "Aggressive", "Conservative")
    assert f"ray[default,train,tune]=={cluster['rayVersion']}" in dependencies()
    assert cluster["authOptions"]["mode"] == "token"
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert (ROOT / Path(spec["entrypoint"].split()[1]).relative_to("/home/ray/srft")).exists()
    assert "--resume" in spec["entrypoint"]
    for group in (head, *workers):
        pod = group["template"]["spec"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # the operator takes no numbers
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group is not head)
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
        assert {"name": "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "value": "0"} in container["env"]
    assert all(0 <= g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] <= 16 for g in workers)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
