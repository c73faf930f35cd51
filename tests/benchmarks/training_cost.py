"""What training on several workers costs beside the steps themselves: statistics, checkpoints, scaling, and the actor's load.

    OMP_NUM_THREADS=1 PYTHONPATH=platform:. python tests/benchmarks/training_cost.py statistics checkpoint scaling ray actor

Each part prints one JSON object; --out FILE keeps them all with machine and commit. ``statistics`` and ``checkpoint`` are of ``base`` with
two streams, ``scaling`` of ``tiny``, ``actor`` of ``base``'s sketches from many workers, simulated by a few processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srft.files import environment, write_json


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds on the wall and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def base_run(batch: int) -> tuple[Any, Any, Any]:
    """A tracker of preset base in two streams, its SRFT optimizer without a prior, and a call that trains one step."""
    from srft.config import OptimConfig, SRFTConfig
    from srft.data.pairs import Batch
    from srft.method.optimizer import SRFTAdamW
    from srft.method.paradigms import select_trainable
    from srft.model.tracker import MultiModalTracker
    from srft.training.update import Updater

    torch.manual_seed(0)
    tracker = MultiModalTracker.from_preset("base", 2)
    select_trainable(tracker, "full", freeze_head=True)
    tracker.train()
    tracker.box_head.eval()
    named = [(name, p) for name, p in tracker.named_parameters() if p.requires_grad]
    optimizer = SRFTAdamW(named, total_steps=100, lr=1e-5, srft=SRFTConfig(rank=0, damping_strength=1.0))
    update = Updater(tracker, optimizer, OptimConfig(batch_size=batch, lr=1e-5))
    z, x = tracker.arch.template_px, tracker.arch.search_px
    data = Batch(torch.randn(batch, 6, z, z), torch.randn(batch, 6, x, x), torch.rand(batch, 4) * 0.3 + 0.3)

    def step() -> None:
        update.gradients(data, 10, "")
        update.apply(10)

    return tracker, optimizer, step


def measure_statistics() -> dict[str, Any]:
    """One refresh (sketch, bytes, merged tables, put to use) and one step."""
    from srft.method.packed import Packed
    from srft.method.sparsity import MergedStatistics, Sketch

    _, optimizer, step = base_run(batch := 2)
    step()
    steps = [timed(step) for _ in range(3)]
    sent = b""

    def submit() -> None:
        nonlocal sent
        sent = optimizer.sketches().to_bytes()

    def use() -> None:
        optimizer.set_statistics(MergedStatistics.of(1, Sketch.unpacked(Packed.from_bytes(sent))))

    submits, uses = [timed(submit) for _ in range(3)], [timed(use) for _ in range(3)]
    middle = lambda parts, key: statistics.median(part[key] for part in parts)
    found = {"batch": batch, "sketch_bytes": len(sent)}
    for key in ("wall_s", "cpu_s"):
        one = middle(steps, key)
        refresh = middle(submits, key) + middle(uses, key)
        found |= {f"step_{key}": one, f"refresh_{key}": refresh, f"share_at_10_steps_{key}": refresh / (10 * one)}
    return found


def measure_checkpoint() -> dict[str, Any]:
    """How long a checkpoint keeps training waiting, and how long it takes to be on the disk."""
    from srft.config import TrainConfig
    from srft.training.checkpoint import Progress
    from srft.training.saving import Checkpointer, resumable
    from srft.training.step import Worker
    from srft.training.worker import full_weights

    tracker, optimizer, _ = base_run(1)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    tensors, blocked, whole = resumable(optimizer, {}, {}), [], []
    with tempfile.TemporaryDirectory() as folder:
        saver = Checkpointer(Path(folder), TrainConfig(), Worker())
        saver.expect(tracker.state_dict(), tensors)
        saver.wait()
        for epoch in range(3):
            started = time.perf_counter()
            saver.save(Progress(epoch=epoch, step=epoch, metrics={}), full_weights(tracker), tensors, {})
            blocked.append(time.perf_counter() - started)
            saver.wait()
            whole.append(time.perf_counter() - started)
    size = sum(t.numel() * t.element_size() for t in (*tensors.values(), *tracker.state_dict().values()))
    # The first save also takes the memory for the copies.
    return {
        "bytes": size,
        "blocked_first_s": blocked[0],
        "blocked_s": statistics.median(blocked[1:]),
        "written_s": statistics.median(whole),
    }


def _config(world: int, steps: int, batch: int = 64) -> Any:
    from srft.config import DataConfig, OptimConfig, SRFTConfig, TrainConfig

    data = DataConfig(train_sequences=3, val_sequences=1, source_sequences=1, length=16)
    optim = OptimConfig(batch_size=batch, epochs=2, steps_per_epoch=steps)
    return TrainConfig(name="cost", workers=world, data=data, optim=optim, srft=SRFTConfig(rank=0, damping_strength=0.5))


def _epoch(config: Any, out: str, worker: Any) -> dict[str, float]:
    """Two epochs without validation; figures of the second, written by rank 0."""
    from srft.data.domain import load_domain
    from srft.training.saving import Checkpointer
    from srft.training.step import build

    torch.set_num_threads(1)
    domain = dataclasses.replace(load_domain(config.data, Path(out) / "cache"), val=(), source=())
    training: Any = build(config, domain, None, worker, Checkpointer(Path(out), config, worker))
    training.validate = lambda domain: {}
    training.run_epoch(0, domain)
    metrics = training.run_epoch(1, domain)
    if worker.rank == 0:
        write_json(Path(out) / f"{config.workers}.json", metrics)
    return metrics


def _process(rank: int, world: int, port: int, steps: int, out: str) -> None:
    from srft.training.step import Worker
    from srft.training.worker import worker_of_group

    config, worker = _config(world, steps), Worker()
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
        worker = worker_of_group(config)
    _epoch(config, out, worker)


def _apart(rank: int, steps: int, batch: int, out: str) -> None:
    from srft.training.step import Worker

    folder = Path(out) / f"apart_{rank}"
    folder.mkdir()
    _epoch(_config(1, steps, batch), str(folder), Worker())


def _entry(config: Any, *, directory: Path, worker: Any, on_epoch: Any, resume: bool, out: str) -> Any:
    from srft.training.epoch import EpochReport

    return EpochReport(epoch=0, step=config.optim.steps_per_epoch, metrics=_epoch(config, out, worker))


def _rate(path: Path) -> float:
    return json.loads(path.read_text())["throughput/samples_per_s"]


def measure_ray(steps: int = 30, rounds: int = 3) -> dict[str, Any]:
    """The same loop on two workers of Ray Train and on two processes of a process group alone, by turns."""
    from torch import multiprocessing

    from srft.training.cluster import cluster
    from srft.training.distributed import train

    alone, with_ray = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(_process, args=(2, 29612, steps, folder), nprocs=2)
            alone.append(_rate(Path(folder) / "2.json"))
            with cluster(dashboard=True):
                report = train(_config(2, steps), functools.partial(_entry, out=folder), directory=Path(folder) / "run")
            with_ray.append(report.metrics["throughput/samples_per_s"])
    added = statistics.median(alone) / statistics.median(with_ray) - 1
    return {"batch": 64, "steps": steps, "samples_per_s_alone": alone, "samples_per_s_ray": with_ray, "added": added}


def measure_scaling(steps: int = 20, rounds: int = 3) -> dict[str, Any]:
    """Samples per second of one and of two processes with one thread each, tiny, 64 pairs per step; and of two that know nothing of each
    other and have half the batch each, which is what the machine could do."""
    from torch import multiprocessing

    one, two, apart = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for world, rates in ((1, one), (2, two)):
                multiprocessing.spawn(_process, args=(world, 29611, steps, folder), nprocs=world)
                rates.append(_rate(Path(folder) / f"{world}.json"))
            multiprocessing.spawn(_apart, args=(steps, 32, folder), nprocs=2)
            apart.append(sum(_rate(Path(folder) / f"apart_{rank}" / "1.json") for rank in range(2)))
    middle = statistics.median
    return {
        "batch": 64,
        "samples_per_s_1": one,
        "samples_per_s_2": two,
        "samples_per_s_2_apart": apart,
        "speed_up": middle(two) / middle(one),
        "speed_up_apart": middle(apart) / middle(one),
    }


def measure_actor(workers: int = 1000, clients: int = 2) -> dict[str, Any]:
    """A window of many workers: until the last of them is in the sum, and how long the answer takes then."""
    import ray

    from srft.training.cluster import cluster
    from srft.training.sparsity_actor import start

    _, optimizer, _ = base_run(1)
    generator = torch.Generator().manual_seed(0)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator) * torch.rand(p.shape, generator=generator) * 1e-3
    optimizer.step()
    sent = optimizer.sketches(0, 64).to_bytes()

    def push(actor: Any, step: int, ranks: range) -> None:
        import ray

        pending: list[Any] = []
        for rank in ranks:
            pending.append(actor.push.remote(1, step, rank, sent))
            if len(pending) >= 8:
                _, pending = ray.wait(pending, num_returns=1)
        ray.get(pending)

    with cluster():
        actor = start("load")
        pusher = ray.remote(push).options(num_cpus=1)
        ray.get([pusher.remote(actor, 0, range(i, 8, clients)) for i in range(clients)])
        started = time.perf_counter()
        ray.get([pusher.remote(actor, 1, range(i, workers, clients)) for i in range(clients)])
        seconds = time.perf_counter() - started
        asked = time.perf_counter()
        answer = ray.get(actor.merged.remote(1, 1, workers))
        answered = time.perf_counter() - asked
        assert answer.sketch is not None
        ray.kill(actor)
    return {
        "workers": workers,
        "sketch_bytes": len(sent),
        "window_s": seconds,
        "messages_per_s": workers / seconds,
        "answer_s": answered,
        "shortest_interval_of_1000_workers_s": 1000 * seconds / workers,
    }


PARTS = {
    "ray": measure_ray,
    "statistics": measure_statistics,
    "checkpoint": measure_checkpoint,
    "scaling": measure_scaling,
    "actor": measure_actor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    for part in options.parts:
        found[part] = PARTS[part]() | {"machine": f"{cpu}, {os.cpu_count()} cores", "environment": environment()}
        print(json.dumps({part: found[part]}, indent=1), flush=True)
        if options.out:
            write_json(options.out, found)


if __name__ == "__main__":
    sys.exit(main())
