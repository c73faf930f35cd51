"""A cluster's week on one machine: a sweep as a job on two worker nodes, one of them lost, the winner trained on what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RayCluster, stop_group
from tests.test_nodes import start_node

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = 2


def wait(what: str, found: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


@pytest.mark.ray
@pytest.mark.long
def test_sweep_lose_a_node_finish_retrain_on_two_workers(tmp_path: Path, ray_cluster: RayCluster) -> None:
    import ray
    from mlflow import MlflowClient
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    from ray.util.state import list_actors

    @ray.remote(num_cpus=4)
    class Occupied:
        """Takes the head's CPUs: like that of cluster.yaml, it trains nothing."""

        def ready(self) -> bool:
            return True

    head = ray.get_runtime_context().get_node_id()
    guard = Occupied.options(scheduling_strategy=NodeAffinitySchedulingStrategy(head, soft=False)).remote()
    assert ray.get(guard.ready.remote())
    homes = [tmp_path / f"node{i}" for i in range(2)]
    nodes: dict[str, subprocess.Popen[bytes]] = {}
    out = tmp_path / "out"
    environment = {**os.environ, **ray_cluster.environment, "PYTHONPATH": "platform", "OMP_NUM_THREADS": "1"}
    job = None
    try:
        for home in homes:
            home.mkdir()
            before = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
            node = start_node(ray_cluster, home)
            (name,) = wait("a node", lambda before=before: {n["NodeID"] for n in ray.nodes() if n["Alive"]} - before)
            nodes[name] = node
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        # Not from a working directory: nodes of one machine share the folder where those are unpacked, and an idle one empties it.
        settings = {
            "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'experiments'}",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "OMP_NUM_THREADS": "1",
        }
        command += ["--runtime-env-json", json.dumps({"env_vars": settings}), "--"]
        command += [sys.executable, str(ROOT / "experiments/rgbe_sweep.py"), "--quick", "--epochs", str(EPOCHS), "--out", str(out)]
        transcript = tmp_path / "job.log"
        with transcript.open("wb") as log:
            job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

        def training() -> list[str]:
            alive = list_actors(address=ray_cluster.dashboard, filters=[("state", "=", "ALIVE")], detail=True)
            return [
                str(a.node_id)
                for a in alive
                if a.node_id in nodes and (a.class_name or "").startswith(("ImplicitFunc", "FunctionTrainable", "_"))
            ]

        wait(
            "the first epoch of a trial",
            lambda: job.poll() is not None or list(out.glob("trials/*/history.jsonl")) or list(out.glob("trials/*/epoch_0000")),
        )
        lost = wait("a trial on a worker node", training)[0]
        os.killpg(nodes[lost].pid, signal.SIGKILL)
        assert job.wait(400) == 0, transcript.read_text()[-4000:]

        board = json.loads((out / "leaderboard.json").read_text())
        states = [t["state"] for t in board["trials"]]
        assert len(states) == 3
        assert set(states) <= {"finished", "stopped"}  # by the scheduler, after an epoch that promised little
        assert "finished" in states
        client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string="name = 'rgbe-sweep'")
        runs = client.search_runs([experiment.experiment_id])
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert len(children) == 3
        for run in children:
            assert run.info.status == "FINISHED"
            steps = [m.step for m in client.get_metric_history(run.info.run_id, "val/success_auc")]
            assert steps in (list(range(EPOCHS)), [0])

        ray.kill(guard)  # one worker on the node that is left, one on the head
        again = [sys.executable, "experiments/retrain.py", "--study", str(out), "--epochs", "1", "--workers", "2"]
        done = subprocess.run(again, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        result = json.loads((tmp_path / "out-retrained" / "result.json").read_text())
        assert result["tests"].keys() >= {"synthetic test", "DAVIS cars", "source RGB only"}
    finally:
        ray.kill(guard)
        for process in (*nodes.values(), *([job] if job else [])):
            if process.poll() is None:
                stop_group(process)
