"""A training that costs nothing and whose outcome is known: stands in for the tracker in the tests of Ray and MLflow."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from srft.config import TrainConfig
from srft.method.sparsity import Histogram, Sketch
from srft.training import checkpoint


def score(config: TrainConfig, epoch: int) -> float:
    """Validation score after an epoch: grows with the epoch, best for the smallest kappa."""
    return (epoch + 1) / 100 / config.srft.kappa


def toy_entry(
    config: TrainConfig,
    *,
    directory: Path,
    worker: Any,
    on_epoch: Any,
    resume: bool,
    pause: float = 0.0,
    raise_at: tuple[str | tuple[str, ...], int] | None = None,
    kill_at: tuple[int, int] | None = None,
    hang_at: tuple[int, int] | None = None,
    fail_after: bool = False,
    diverge_at: int | None = None,
) -> Any:
    """Adds one number per step to a weight, through the process group where there is one.

    Args:
        pause: seconds per epoch.
        raise_at: (end of run name, or several, and epoch) that fails, once per directory.
        kill_at: (rank other than 0, and epoch) that dies by SIGKILL once rank 0 has saved and before it is told so, once per directory.
        hang_at: (rank, epoch) that stops answering, once per directory.
        fail_after: fail once all epochs are done.
        diverge_at: epoch in which every worker's loss is not finite.
    """
    import torch

    from srft.training.epoch import EpochReport, Told

    torch.manual_seed(config.seed)
    module = torch.nn.Linear(4, 1, bias=False)
    newest = checkpoint.latest(directory) if resume else None
    first, report = 0, None
    if newest is not None:
        saved = checkpoint.load(newest)
        module.load_state_dict(saved.weights)
        first = saved.meta.epoch + 1
        report = EpochReport(epoch=saved.meta.epoch, step=saved.meta.step, metrics=saved.meta.metrics)
    model = worker.wrap(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=config.optim.lr)
    refreshed = 0
    for epoch in range(first, config.optim.epochs):
        time.sleep(pause)
        if raise_at and config.name.endswith(raise_at[0]) and epoch == raise_at[1] and _once(directory / "raised"):
            raise RuntimeError(f"planned failure in epoch {epoch}")
        if hang_at == (worker.rank, epoch) and _once(directory / "hung"):
            time.sleep(3600)
        if epoch == diverge_at:
            raise FloatingPointError(f"planned: loss is nan in epoch {epoch}")
        if worker.told() == "end":
            raise Told("told to end")
        for step in range(config.optim.steps_per_epoch):
            data = torch.randn(config.optim.batch_size, 4, generator=torch.Generator().manual_seed(1000 * epoch + step))
            optimizer.zero_grad()
            model(data[worker.rank :: worker.world_size]).square().mean().backward()
            optimizer.step()
            taken = epoch * config.optim.steps_per_epoch + step + 1
            if worker.statistics is not None:
                refreshed += worker.statistics.due(taken) is not None
                if taken % config.srft.refresh == 0:
                    worker.statistics.submit(taken, Sketch({"group": Histogram(16 * worker.rank, np.ones(1, np.int64))}))
        if kill_at == (worker.rank, epoch) and _once(directory / "killed"):
            while (saved_by_first := checkpoint.latest(directory)) is None or saved_by_first.name != f"epoch_{epoch:04d}":
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        report = EpochReport(
            epoch=epoch,
            step=(epoch + 1) * config.optim.steps_per_epoch,
            metrics={
                "val/success_auc": score(config, epoch),
                "source/success_auc": config.srft.kappa / 10,
                "weight": float(module.weight.detach().double().sum()),
                "pid": float(os.getpid()),
                "refreshed": float(refreshed),
                "world_size": float(worker.world_size),
            },
        )
        if worker.rank == 0:
            progress = checkpoint.Progress(epoch=epoch, step=report.step, metrics=report.metrics)
            checkpoint.begin(directory, progress)
            checkpoint.commit(directory, progress, config=config, weights=module.state_dict(), state={})
        worker.gather(None)
        on_epoch(report)
    assert report is not None
    if fail_after:
        raise RuntimeError("planned failure after the last epoch")
    return report


def _once(flag: Path) -> bool:
    try:
        flag.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
