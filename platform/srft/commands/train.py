"""``srft train``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from srft.config import Strategy, TrainConfig
from srft.settings import from_flat, load, parse_settings


@dataclass(frozen=True, kw_only=True)
class Train:
    """Fine-tune one tracker.

    srft train --config outputs/rgbe_sweep/best.json --out outputs/winner --set optim.epochs=20

    srft train --config outputs/rgbe_sweep/best.json --out outputs/winner --set optim.epochs=20 --workers 2 --resume

    srft train --set data.benchmark=lasher data.root=/data/LasHeR --out outputs/lasher
    """

    config: Path | None = None
    """JSON file of dotted keys, such as a sweep's best.json; the defaults when left out."""
    out: Path = Path("outputs/train")
    """Directory of the run: checkpoints, and cache/ with rendered data and the prior."""
    set: tuple[str, ...] = ()
    """Settings to replace, as key=value: --set optim.lr=1e-4 srft.rank=32."""
    workers: int | None = None
    """Training processes; more than one is a Ray Train run in the cluster of RAY_ADDRESS, or on this machine."""
    strategy: Strategy | None = None
    """How several workers hold the network: each all of it (ddp), or each a shard of it (fsdp2)."""
    resume: bool = False
    """Go on from the newest valid checkpoint in --out."""


def settings(command: Train) -> TrainConfig:
    """The run: what --config says, and what replaces it.

    Args:
        command: the options.

    Returns:
        The configuration.
    """
    config = load(command.config) if command.config else TrainConfig()
    layout = {"workers": command.workers, "strategy": command.strategy}
    values = {key: value for key, value in layout.items() if value is not None} | parse_settings(command.set)
    return from_flat(values, config, source="--workers, --strategy, --set")


def run(command: Train) -> None:
    """Train and print the best checkpoint.

    Args:
        command: the options.
    """
    config = settings(command)

    from srft.training import checkpoint, step
    from srft.training.cluster import cluster
    from srft.training.distributed import train

    def show(report: step.EpochReport) -> None:
        m = report.metrics
        print(
            f"epoch {report.epoch + 1}/{config.optim.epochs}  loss {m['train/loss']:.3f}  val {m['val/success_auc']:.3f}"
            f"  source {m['source/success_auc']:.3f}  {m['throughput/samples_per_s']:.0f} samples/s",
            flush=True,
        )

    cache = (command.out / "cache").resolve()
    entry = functools.partial(step.run, cache=cache)
    if config.workers == 1:
        train(config, entry, directory=command.out, on_epoch=show, resume=command.resume)
    else:
        with cluster(dashboard=True):
            train(config, entry, directory=command.out, on_epoch=show, resume=command.resume)
    print(f"best checkpoint  {checkpoint.best(command.out)}")
