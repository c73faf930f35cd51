"""Fine-tuning, the same for every layout: one process is the reference, workers are told who they are by :class:`Worker`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from srft.config import BaselineConfig, ConfigError, OptimConfig, TrainConfig, from_flat
from srft.data.pairs import Batch, PairSampler
from srft.data.sequence import Domain, Sequence
from srft.data.synthetic import load_domain
from srft.evaluation.metrics import measure
from srft.evaluation.online import track_sequences
from srft.method.baselines import attach, diagonals, ewc, l2_sp
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import RATES, add_parts, parameter_groups, select_trainable, what_trains
from srft.method.prior import PriorSensitivity
from srft.method.sparsity import LocalExchange, MergedStatistics, StatisticsExchange
from srft.model.architecture import preset_of
from srft.model.losses import tracking_loss
from srft.model.pretrained import load_tracker
from srft.model.tracker import MultiModalTracker
from srft.training import checkpoint
from srft.training.prior import carry, source_prior, wants_prior

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What one epoch came to."""

    epoch: int
    """Finished epoch, from 0."""
    step: int
    """Optimizer steps done."""
    metrics: dict[str, float]
    """By fixed names: ``train/loss``, ``val/success_auc``, ``source/success_auc``, ``sparsity/hoyer/<operation>``, ..."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Who trains, and how it reaches the others; the defaults are a single process."""

    rank: int = 0
    world_size: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network
    """Makes gradients the mean over workers (DistributedDataParallel)."""
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Every worker's value, by rank (collective)."""
    statistics: StatisticsExchange | None = None
    """Merges transfer statistics over workers; None keeps them in this process."""
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    """Where this worker's network is; a GPU if there is one."""


def learning_rate(optim: OptimConfig, step: int) -> float:
    """Linear warm-up, then a half cosine to zero.

    Args:
        optim: peak rate, warm-up share and length.
        step: optimizer steps done.

    Returns:
        The rate of the next step.
    """
    warmup = round(optim.warmup * optim.total_steps)
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, optim.total_steps - warmup)))


def fine_tune(
    config: TrainConfig,
    domain: Domain,
    prior: PriorSensitivity | None,
    *,
    directory: Path,
    worker: Worker | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    resume: bool = False,
) -> EpochReport:
    """Tune the pre-trained RGB tracker to the target domain.

    Each worker takes its share of every global batch; the same seed gives the same samples on any number of workers. Validation
    tracks the sequences online, shared among the workers. Rank 0 writes a checkpoint after each epoch.

    Args:
        config: the run.
        domain: what to train and validate on.
        prior: of the pre-trained RGB tracker; see ``srft.training.prior.wants_prior``.
        directory: of the checkpoints.
        worker: which worker this is.
        on_epoch: called after each epoch, once its checkpoint is complete.
        resume: go on from the directory's newest valid checkpoint, if there is one; without it a directory with one is refused.

    Returns:
        The last epoch's report. A loss or gradient that is not finite is a FloatingPointError that names epoch and step, before the
        update and on every worker; a prior that does not fit the tracker is a ValueError.

    Raises:
        ValueError: a run that needs a prior comes without.
        ConfigError: the weights are not of the run's preset, or the directory holds checkpoints that this run may not go on from.
    """
    worker = worker or Worker()
    _, regularized = what_trains(config.paradigm)
    if not resume and (found := checkpoint.latest(directory)) is not None:
        raise ConfigError(f"{found}: the directory holds checkpoints of an earlier start; resume it or choose another directory")
    torch.manual_seed(config.seed)
    network = load_tracker(config.tracker.pretrained, streams=1 if config.data.modality == "rgb" else 2).to(worker.device)
    if (preset := preset_of(network.arch)) != config.tracker.preset:
        raise ConfigError(
            f"tracker.preset is {config.tracker.preset!r}, but the weights {config.tracker.pretrained} are of preset {preset!r}; "
            "set the preset of the weights, or weights of the preset"
        )
    network.set_training(drop_path=config.tracker.drop_path, grad_checkpointing=config.tracker.grad_checkpointing)
    new = add_parts(network, config.paradigm, seed=config.seed)
    trainable = set(select_trainable(network, config.paradigm, freeze_head=config.tracker.freeze_head))
    carried: PriorSensitivity | None = None
    if wants_prior(config) and trainable - new:  # New parameters have no prior.
        if prior is None:
            raise ValueError(
                f"paradigm {config.paradigm} with srft.rank {config.srft.rank} and baseline.kind {config.baseline.kind} needs a prior, "
                "None was given; pass one (source_prior)"
            )
        carried = carry(prior.truncated(config.srft.rank), network)
    sampler = PairSampler(
        sequences=domain.train,
        arch=network.arch,
        seed=config.seed,
        max_gap=config.data.max_gap,
        center_jitter=config.data.center_jitter,
        scale_jitter=config.data.scale_jitter,
    )
    optimizer = SRFTAdamW(
        parameter_groups(network, RATES[config.optim.rates], lr=config.optim.lr),
        total_steps=config.optim.total_steps,
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        srft=config.srft if regularized else None,
        prior=carried if regularized else None,
        fused=True,
    )
    pretrained = [(name, p) for name, p in network.named_parameters() if name in trainable - new]
    _attach_baseline(config.baseline, pretrained, optimizer, carried)
    exchange = worker.statistics or LocalExchange(config.srft.refresh)
    first, report = _restore(config, directory, network, optimizer, exchange) if resume else (0, None)
    model = worker.wrap(network)
    for epoch in range(first, config.optim.epochs):
        metrics = _epoch(config, model, network, optimizer, sampler, exchange, worker, epoch)
        metrics |= _validate(network, domain, worker)
        report = EpochReport(epoch=epoch, step=optimizer.steps_taken, metrics=metrics)
        if worker.rank == 0:
            state: dict[str, Any] = {"optimizer": optimizer.state_dict(), "torch_rng": torch.get_rng_state()}
            if isinstance(exchange, LocalExchange):
                state["exchange"] = exchange.state_dict()
            checkpoint.save(
                directory, config=config, epoch=epoch, step=report.step, weights=network.state_dict(), state=state, metrics=metrics
            )
        worker.gather(None)  # no worker reports an epoch whose checkpoint is not complete
        if on_epoch:
            on_epoch(report)
    if report is None:
        raise ValueError(f"{directory}: nothing to train and nothing to resume from")
    return report


def prepare(config: TrainConfig, cache: Path) -> tuple[Domain, PriorSensitivity | None]:
    """Load a run's sequences and prior, or make and keep them.

    Args:
        config: the run.
        cache: folder of both.

    Returns:
        The sequences, and the prior if the run needs one.
    """
    return load_domain(config.data, cache), source_prior(config, cache) if wants_prior(config) else None


def run(
    config: TrainConfig,
    *,
    cache: Path,
    directory: Path,
    worker: Worker | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    resume: bool = False,
) -> EpochReport:
    """Load (or make) the run's sequences and prior, then :func:`fine_tune`.

    Args:
        config: the run.
        cache: folder of rendered sequences and priors, shared by runs; prepare it once before several processes use it.
        directory: of the checkpoints.
        worker: which worker this is.
        on_epoch: called after each epoch.
        resume: go on from the newest valid checkpoint.

    Returns:
        The last epoch's report.
    """
    domain, prior = prepare(config, cache)
    return fine_tune(config, domain, prior, directory=directory, worker=worker, on_epoch=on_epoch, resume=resume)


def tuned_tracker(folder: Path) -> MultiModalTracker:
    """The tracker of a checkpoint.

    Args:
        folder: an ``epoch_*`` directory. One that is incomplete or altered is a ``checkpoint.CheckpointError``.

    Returns:
        The tracker in eval mode, with the parts that its paradigm added.
    """
    saved = checkpoint.load(folder)
    config = from_flat(saved.meta.config, source=str(folder))
    network = load_tracker(config.tracker.pretrained, streams=1 if config.data.modality == "rgb" else 2)
    add_parts(network, config.paradigm, seed=config.seed)
    network.load_state_dict(saved.weights)
    return network.eval()


def _attach_baseline(
    baseline: BaselineConfig, named: list[tuple[str, nn.Parameter]], optimizer: SRFTAdamW, prior: PriorSensitivity | None
) -> None:
    # Before anything is restored: what the parameters are now is what they are held near to.
    if baseline.kind == "l2_sp":
        attach(l2_sp(named, strength=baseline.strength), optimizer, decoupled=baseline.decoupled)
    if baseline.kind == "ewc" and prior is not None:
        attach(ewc(named, diagonals(prior, named), strength=baseline.strength), optimizer, decoupled=baseline.decoupled)


def _restore(
    config: TrainConfig, directory: Path, network: MultiModalTracker, optimizer: SRFTAdamW, exchange: StatisticsExchange
) -> tuple[int, EpochReport | None]:
    newest = checkpoint.latest(directory)
    if newest is None:
        return 0, None
    saved = checkpoint.load(newest)
    if saved.meta.digest != config.digest():
        raise ConfigError(
            f"{newest} is of configuration {saved.meta.digest}, this run is configuration {config.digest()}; choose another directory"
        )
    network.load_state_dict(saved.weights)
    optimizer.load_state_dict(saved.state["optimizer"])
    torch.set_rng_state(saved.state["torch_rng"])
    if isinstance(exchange, LocalExchange) and "exchange" in saved.state:
        exchange.load_state_dict(saved.state["exchange"])
    log.info("resuming from %s", newest)
    return saved.meta.epoch + 1, EpochReport(epoch=saved.meta.epoch, step=saved.meta.step, metrics=saved.meta.metrics)


def _epoch(
    config: TrainConfig,
    model: nn.Module,
    network: MultiModalTracker,
    optimizer: SRFTAdamW,
    sampler: PairSampler,
    exchange: StatisticsExchange,
    worker: Worker,
    epoch: int,
) -> dict[str, float]:
    optim, refresh = config.optim, config.srft.refresh
    _, regularized = what_trains(config.paradigm)
    network.train()
    network.box_head.eval()  # normalization statistics stay as pre-trained
    sums: dict[str, float] = {}
    merged: MergedStatistics | None = None
    started = time.perf_counter()
    for batch in sampler.epoch(epoch, optim.steps_per_epoch, optim.batch_size, worker.rank, worker.world_size):
        step = optimizer.steps_taken
        if (due := exchange.due(step)) is not None:
            merged = due
            optimizer.set_statistics(due)
        batch = Batch(*(part.to(worker.device) for part in batch))
        parts = _step(model, optimizer, batch, learning_rate(optim, step), optim.grad_clip, f"epoch {epoch}, step {step}")
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        if regularized and (step + 1) % refresh == 0:
            exchange.submit(step + 1, optimizer.sketches(worker.rank, worker.world_size))
    seconds = time.perf_counter() - started
    shares = worker.gather(sums)
    metrics = {f"train/{name}": float(np.mean([share[name] for share in shares])) / optim.steps_per_epoch for name in sums}
    metrics["lr"] = learning_rate(optim, optimizer.steps_taken - 1)
    metrics["throughput/samples_per_s"] = optim.steps_per_epoch * optim.batch_size / seconds
    if regularized:
        metrics["srft/prior_weight"] = optimizer.prior_weight
    if merged is not None:
        hoyer = {n: figures.hoyer for n, figures in merged.figures.items() if ("weight" in n or "lora_" in n) and "norm" not in n}
        metrics |= {f"sparsity/hoyer/{name.removeprefix('backbone.')}": value for name, value in hoyer.items()}
        if hoyer:
            metrics["sparsity/hoyer"] = math.fsum(hoyer.values()) / len(hoyer)  # The same for any order of the operations.
    return metrics


def _step(model: nn.Module, optimizer: SRFTAdamW, batch: Batch, lr: float, clip: float, where: str) -> dict[str, float]:
    optimizer.zero_grad()
    parts = tracking_loss(model(batch.template, batch.search), batch.boxes)
    parts["loss"].backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    values = dict(zip([*parts, "grad_norm"], torch.stack([*(part.detach() for part in parts.values()), norm]).tolist(), strict=True))
    # After backward: gradients are the mean over workers, so that all of them see one worker's failure and none waits for it.
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        bad = [n for n, p in zip(names, parameters, strict=True) if p.grad is not None and not p.grad.isfinite().all()]
        named = f"; the gradient of {bad[0]} and {len(bad) - 1} more is not finite" if bad else ""
        raise FloatingPointError(
            f"{where}: loss and gradient norm are {values}{named}; stopped before the update. "
            f"Lower optim.lr (now {lr:.3g}) or check the data"
        )
    if clip > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_multiplier", 1.0)
    optimizer.step()
    return values


def _validate(network: MultiModalTracker, domain: Domain, worker: Worker) -> dict[str, float]:
    def scored(sequences: tuple[Sequence, ...], rgb_only: bool) -> tuple[float, float]:
        mine = sequences[worker.rank :: worker.world_size]
        tracked = [(t.boxes, s.boxes, s.absent) for t, s in zip(track_sequences(network, mine, rgb_only=rgb_only), mine, strict=True)]
        measures = measure([result for share in worker.gather(tracked) for result in share])
        return measures.success_auc, measures.precision_20

    success, precision = scored(domain.val, rgb_only=False)
    source, _ = scored(domain.source, rgb_only=True)
    return {"val/success_auc": success, "val/precision_20": precision, "source/success_auc": source}
