"""What dies, and what is left: processes killed while they save, signalled, and groups of workers in which everything goes wrong once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from srft.config import DataConfig, OptimConfig, SRFTConfig, TrainConfig, to_flat
from srft.settings import from_flat
from srft.training import checkpoint, distributed, home, saving, sparsity_actor, state
from srft.training.checkpoint import Progress
from srft.training.saving import Checkpointer
from srft.training.state import read_tensors
from srft.training.step import Worker
from tests.toy_training import toy_entry

ROOT = Path(__file__).resolve().parent.parent
CONFIG = TrainConfig(name="faults", srft=SRFTConfig(refresh=2), optim=OptimConfig(batch_size=8, epochs=5, steps_per_epoch=4, lr=0.01))


def _save(directory: Path, epoch: int) -> None:
    tensor = torch.full((50,), float(epoch))
    progress = Progress(epoch=epoch, step=epoch, metrics={"val/success_auc": 1 - epoch / 10})
    Checkpointer(directory, CONFIG, Worker(), aside_from=0 if epoch == 2 else 2**30).save(
        progress, {"w": tensor}, {"m.w": tensor}, {"n": epoch}
    )


def _save_and_die(directory: Path, at: int) -> None:
    # The process dies at its at-th call of anything that changes the disk.
    calls = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    torch.set_num_threads(1)
    for module, name in [
        *((checkpoint, name) for name in ("sync", "write_json", "sha256")),
        *((checkpoint.os, "replace"), (checkpoint.shutil, "rmtree"), (saving, "write_tensors"), (state, "_quiet")),
    ]:
        setattr(module, name, counted(getattr(module, name)))
    _save(directory, 2)


def test_a_process_killed_at_any_moment_of_a_save_leaves_whole_checkpoints(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    seen = set()
    for at in range(1, 60):
        directory = tmp_path / str(at)
        home.claim(directory, CONFIG, resume=False)
        _save(directory, 0)
        _save(directory, 1)
        process = context.Process(target=_save_and_die, args=(directory, at))
        process.start()
        process.join(60)
        home.claim(directory, CONFIG, resume=True)
        newest = checkpoint.latest(directory)
        assert newest is not None
        seen.add(newest.name)
        found = torch.zeros(50)
        saved = checkpoint.load(newest)
        read_tensors(saved.tensors, {"m.w": found})
        assert torch.equal(found, saved.weights["w"])
        assert saved.state["n"] == found[0] == int(newest.name[-1]) >= 1
        assert not list(directory.glob(".epoch*"))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert seen == {"epoch_0001", "epoch_0002"}
    assert process.exitcode == 0
    assert at > 15


@pytest.mark.long
def test_a_terminated_run_saves_first_and_goes_on(tmp_path: Path) -> None:
    """The command itself: SIGTERM inside an epoch, then --resume."""
    data = DataConfig(train_sequences=3, val_sequences=1, source_sequences=1, length=8, max_gap=6)
    config = TrainConfig(paradigm="full", data=data, optim=OptimConfig(batch_size=4, epochs=2, steps_per_epoch=30))
    (tmp_path / "run.json").write_text(json.dumps(to_flat(config)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "srft.cli", "train", "--config", str(tmp_path / "run.json"), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not (out / "epoch_0000").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "--resume" in output
    newest = checkpoint.latest(out)
    assert newest is not None
    step = checkpoint.read_meta(newest).step
    assert newest.name == f"epoch_0001_step_{step:06d}"
    assert 30 < step < 60
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stdout
    assert "epoch 1/2" not in done.stdout
    assert [entry["step"] for entry in checkpoint.history(out)] == [30, 60]


@pytest.mark.ray
@pytest.mark.long
def test_everything_goes_wrong_once(tmp_path: Path, ray_cluster: Any) -> None:
    """Two workers: an exception, one that hangs, one that is killed, SIGINT at the driver, a loss that is not finite; then one worker."""
    two = from_flat({"workers": 2}, CONFIG)
    entry = partial(toy_entry, raise_at=("faults", 0), hang_at=(0, 1), kill_at=(1, 2), diverge_at=4, pause=1.5)
    seen: list[int] = []
    asked: list[Any] = []

    def on_epoch(report: Any) -> None:
        seen.append(report.epoch)
        asked.append(sparsity_actor.of_running(tmp_path))
        if report.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        distributed.train(two, entry, directory=tmp_path, on_epoch=on_epoch, max_failures=5, worker_timeout=20.0)
    assert {flag.name for flag in tmp_path.iterdir()} >= {"raised", "hung", "killed"}
    assert time.monotonic() - started < 400
    assert seen in ([0, 1, 2], [0, 1, 2, 3])
    assert asked[-1].tables.keys() == {"group"}  # the newest statistics, from outside, while it trains
    assert sparsity_actor.of_running(tmp_path) is None
    with pytest.raises(FloatingPointError, match="planned"):
        distributed.train(two, entry, directory=tmp_path, resume=True, on_epoch=lambda report: seen.append(report.epoch))
    assert seen == [0, 1, 2, 3]
    last = distributed.train(CONFIG, toy_entry, directory=tmp_path, resume=True)
    alone = distributed.train(CONFIG, toy_entry, directory=tmp_path / "alone")
    assert last.metrics["weight"] == pytest.approx(alone.metrics["weight"], rel=1e-5)


def _train_two(directory: str, address: str) -> None:
    # A driver, to be killed.
    import ray

    from srft.training.cluster import cluster

    with cluster():
        print("connected", ray.get_runtime_context().gcs_address == address, flush=True)
        config = from_flat({"workers": 2}, CONFIG)
        last = distributed.train(config, partial(toy_entry, pause=1.5), directory=Path(directory), resume=True, on_epoch=_say)
        print("weight", last.metrics["weight"], flush=True)


def _say(report: Any) -> None:
    print("epoch", report.epoch, flush=True)


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("killed", ["controller", "driver"])
def test_who_leads_the_workers_is_killed(killed: str, tmp_path: Path, ray_cluster: Any) -> None:
    """A dead controller is replaced in the same call; after a dead driver nothing is left running, and --resume goes on."""
    import ray
    from ray._private import state as ray_state

    def alive() -> dict[str, int]:
        found = [a for a in ray_state.actors().values() if a["State"] not in ("DEAD",)]
        return {a["ActorClassName"]: a["Pid"] for a in found if a["ActorClassName"] not in before}

    before = {a["ActorClassName"] for a in ray_state.actors().values() if a["State"] != "DEAD"}
    address, free = ray.get_runtime_context().gcs_address, ray.available_resources().get("CPU")
    code = f"from tests.test_faults import _train_two; _train_two({str(tmp_path)!r}, {address!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]), "RAY_ADDRESS": address}

    def start() -> Any:
        return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    driver = start()
    lines = []
    for line in driver.stdout:
        lines.append(line.split())
        if lines[-1] == ["epoch", "1"]:
            break
    os.kill(alive()["TrainController"] if killed == "controller" else driver.pid, signal.SIGKILL)
    lines += [line.split() for line in driver.stdout]
    if killed == "driver":
        assert driver.wait(60) == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while (ray.available_resources().get("CPU") != free or alive()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not alive()
        driver = start()
        lines += [line.split() for line in driver.stdout]
    assert driver.wait(60) == 0, lines
    epochs = [int(line[1]) for line in lines if line[0] == "epoch"]
    assert epochs == [0, 1, 2, 3, 4]
    assert ray.available_resources().get("CPU") == free
    alone = distributed.train(CONFIG, toy_entry, directory=tmp_path / "alone")
    assert float(lines[-1][1]) == pytest.approx(alone.metrics["weight"], rel=1e-5)
