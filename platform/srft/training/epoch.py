"""One run in motion: an epoch of updates, its statistics, validation, and what a checkpoint keeps of them."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srft.config import TrainConfig
from srft.data.loader import PairLoader
from srft.data.sequence import Domain, Sequence
from srft.evaluation.follow import track_sequences
from srft.evaluation.metrics import measure
from srft.method.giving_back import GivingBack
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import add_parts
from srft.method.sparsity import LocalExchange, MergedStatistics, StatisticsExchange
from srft.model.tracker import MultiModalTracker
from srft.training.checkpoint import Progress
from srft.training.saving import Checkpointer, restore, resumable
from srft.training.update import LossScale, RunningMean, Updater, learning_rate
from srft.training.worker import LocalEnergies, Notice, Worker, full_weights

__all__ = ["EpochReport", "Told", "Training", "statistics_metrics"]

log = logging.getLogger(__name__)


class Told(KeyboardInterrupt):
    """The run was told to end, and saved before it did."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What one epoch came to."""

    epoch: int
    """Finished epoch, from 0."""
    step: int
    """Optimizer steps done."""
    metrics: dict[str, float]
    """By fixed names: ``train/loss``, ``val/success_auc``, ``source/success_auc``, ``sparsity/hoyer/<operation>``, ..."""


@dataclass(kw_only=True)
class Training:
    """A run's parts, and how far it is."""

    config: TrainConfig
    worker: Worker
    network: MultiModalTracker
    optimizer: SRFTAdamW
    update: Updater
    energies: LocalEnergies | None
    """Where workers see their own gradients."""
    mean: RunningMean | None
    giving: GivingBack | None
    loader: PairLoader
    exchange: StatisticsExchange
    checkpoints: Checkpointer
    regularized: bool
    epoch: int = 0
    """Epoch to go on with."""
    step: int = 0
    """Steps done."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of this worker's values in the running epoch."""
    merged: MergedStatistics | None = None
    """Newest statistics of the running epoch."""

    def steps_done(self, epochs: int) -> int:
        """Steps of whole epochs.

        Args:
            epochs: how many.

        Returns:
            Optimizer steps.
        """
        return epochs * self.config.optim.steps_per_epoch

    @property
    def raw(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name where something else is validated and exported, otherwise none."""
        same = self.mean is None and self.giving is None
        return {} if same else {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def resumable(self) -> dict[str, torch.Tensor]:
        """What resuming needs besides the exported weights.

        Returns:
            The very tensors, by name.
        """
        means = self.mean.values if self.mean and self.giving else {}
        return resumable(self.optimizer, self.raw, means)

    def restore(self, directory: Path) -> EpochReport | None:
        """Go on from the newest valid checkpoint, if there is one.

        Args:
            directory: of the run.

        Returns:
            The last finished epoch.
        """
        saved = restore(self.config, directory, self.network, self.optimizer, self.mean, self.resumable())
        if saved is None:
            return None
        state, meta = saved.state, saved.meta
        self.step, self.epoch = meta.step, meta.epoch + (meta.metrics is not None)
        self.update.scale = LossScale(**state["scale"])
        if len(state["rng"]) == self.worker.world_size:
            torch.set_rng_state(state["rng"][self.worker.rank])
            if (on_gpu := state.get("rng_gpu", {}).get(self.worker.rank)) is not None and self.worker.device.type == "cuda":
                torch.cuda.set_rng_state(on_gpu, self.worker.device)
        else:
            torch.manual_seed(hash((self.config.seed, self.step, self.worker.rank)))
        if len(state["sums"]) == self.worker.world_size:
            self.sums = dict(state["sums"][self.worker.rank])
        else:  # Their sum is what counts.
            self.sums = {} if self.worker.rank else _added(state["sums"])
            self.sums = {name: value * self.worker.world_size / len(state["sums"]) for name, value in self.sums.items()}
        if state["merged"]:
            self.merged = MergedStatistics.from_bytes(state["merged"])
        if isinstance(self.exchange, LocalExchange) and state["exchange"] is not None:
            self.exchange.load_state_dict(state["exchange"])
        return EpochReport(**meta.history[-1]) if meta.history else None

    def save(self, progress: Progress) -> None:
        """Write a checkpoint; collective.

        Args:
            progress: how far the run is.
        """
        exchange = self.exchange.state_dict() if isinstance(self.exchange, LocalExchange) else None
        on_gpu = torch.cuda.get_rng_state(self.worker.device) if self.worker.device.type == "cuda" else None
        values: dict[str, Any] = {
            "method": self.optimizer.method_state(),
            "scale": asdict(self.update.scale),
            "rng": self.worker.gather(torch.get_rng_state()),
            "rng_gpu": dict(enumerate(self.worker.gather(on_gpu))),
            "sums": self.worker.gather(dict(self.sums)),
            "merged": self.merged.to_bytes() if self.merged else None,
            "exchange": exchange,
        }
        self.checkpoints.save(progress, self._exported(), self.resumable(), values)

    def run_epoch(self, epoch: int, domain: Domain) -> dict[str, float]:
        """Train, or go on with, one epoch and validate.

        Args:
            epoch: which.
            domain: what to validate on.

        Returns:
            Metrics by their fixed names. Being told to end is a :class:`Told`, once a checkpoint inside the epoch is complete.
        """
        config, worker, optim, optimizer = self.config, self.worker, self.config.optim, self.optimizer
        self.network.train()
        self.network.box_head.eval()  # normalization statistics stay as pre-trained
        first = self.step - self.steps_done(epoch)
        if first == 0:
            self.sums, self.merged = {}, None
        started, waited = time.perf_counter(), 0.0
        for i in range(first, optim.steps_per_epoch):
            if (due := self.exchange.due(self.step)) is not None:
                self.merged = due
                optimizer.set_statistics(due)
            asked = time.perf_counter()
            batch = self.loader.batch(epoch, i)
            waited += time.perf_counter() - asked
            submits = self.regularized and (self.step + 1) % config.srft.refresh == 0
            if self.energies:
                self.energies.due = submits
            values = self.update.gradients(batch, self.step, f"epoch {epoch}, step {self.step}")
            energies = self.energies.taken(worker.rank, worker.world_size) if self.energies else {}
            self.update.apply(self.step)
            self.step += 1
            if self.mean:
                self.mean.update(self.step)
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            if submits:
                sketch = optimizer.sketches(worker.rank, worker.world_size)
                self.exchange.submit(self.step, replace(sketch, energies=energies, workers=int(bool(energies))))
            self._pause(epoch, i)
        seconds = time.perf_counter() - started
        done = optim.steps_per_epoch - first
        shares = worker.gather(self.sums)
        sums = {name: total / len(shares) for name, total in _added(shares).items()}
        skipped = sums.pop("skipped", 0.0)
        metrics = {f"train/{name}": total / max(1.0, optim.steps_per_epoch - skipped) for name, total in sums.items()}
        if optim.precision == "fp16":
            metrics["train/skipped_steps"] = skipped
        metrics["lr"] = learning_rate(optim, self.step - 1)
        metrics["throughput/samples_per_s"] = done * optim.batch_size / seconds
        metrics["throughput/data_share"] = waited / seconds
        metrics["memory/peak_mb"] = max(worker.gather(_peak_memory(worker.device)))
        if self.regularized:
            metrics["srft/prior_weight"] = optimizer.prior_weight
        if self.merged is not None:
            metrics |= statistics_metrics(self.merged, optim.batch_size // worker.world_size)
        return metrics | self.validate(domain)

    def _pause(self, epoch: int, i: int) -> None:
        # Between two steps inside an epoch: save now and then, or save and end.
        if i + 1 == self.config.optim.steps_per_epoch:
            return
        every = self.config.checkpoint_steps
        alone = self.worker.world_size == 1
        notice = self.worker.told() if alone or self.step % self.config.srft.refresh == 0 else ""
        if notice or (every and self.step % every == 0):
            self.save(Progress(epoch=epoch, step=self.step, metrics=None))
        self.heed(notice)

    def heed(self, notice: Notice) -> None:
        """Do what the run is told, once what it saved is on disk.

        Args:
            notice: what that is.

        Raises:
            Told: it is to end.
        """
        if notice:
            self.checkpoints.wait()
        if notice == "end":
            raise Told(f"told to end after step {self.step}; saved, --resume goes on from there")

    def _exported(self) -> dict[str, torch.Tensor]:
        weights = full_weights(self.network)
        if self.mean:
            weights |= {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in self.mean.values.items()}  # pyrefly: ignore
        return self.giving(weights) if self.giving else weights

    def _validated(self) -> MultiModalTracker:
        # What is exported is what is validated. Workers track different numbers of frames, so that shards cannot be asked for.
        if self.worker.whole and not self.raw:
            return self.network
        network = MultiModalTracker(self.network.arch, self.network.streams)
        add_parts(network, self.config.paradigm, seed=self.config.seed)
        network.load_state_dict(self._exported())
        return network.to(self.worker.device)

    def validate(self, domain: Domain) -> dict[str, float]:
        """Track the validation and source sequences online, shared among the workers.

        Args:
            domain: of the run.

        Returns:
            Success and precision by their fixed names.
        """
        worker, network = self.worker, self._validated()

        def scored(sequences: tuple[Sequence, ...], rgb_only: bool) -> tuple[float, float]:
            mine = sequences[worker.rank :: worker.world_size]
            tracked = [(t.boxes, s.boxes, s.absent) for t, s in zip(track_sequences(network, mine, rgb_only=rgb_only), mine, strict=True)]
            measures = measure([result for share in worker.gather(tracked) for result in share])
            return measures.success_auc, measures.precision_20

        success, precision = scored(domain.val, rgb_only=False)
        source, _ = scored(domain.source, rgb_only=True)
        return {"val/success_auc": success, "val/precision_20": precision, "source/success_auc": source}


def statistics_metrics(merged: MergedStatistics, batch: int) -> dict[str, float]:
    """Figures of merged statistics by the names that runs are compared by.

    Args:
        merged: over all workers.
        batch: samples per worker.

    Returns:
        ``sparsity/hoyer/<operation>`` of the operations that are matrices, their mean ``sparsity/hoyer``, and ``sparsity/overlap`` and
        ``sparsity/noise_scale`` where several workers saw their own gradients.
    """
    hoyer = {n: figures.hoyer for n, figures in merged.figures.items() if ("weight" in n or "lora_" in n) and "norm" not in n}
    metrics = {f"sparsity/hoyer/{name.removeprefix('backbone.')}": value for name, value in hoyer.items()}
    if hoyer:
        metrics["sparsity/hoyer"] = math.fsum(hoyer.values()) / len(hoyer)  # The same for any order of the operations.
    shared = {"sparsity/overlap": merged.overlap, "sparsity/noise_scale": merged.noise(batch)}
    return metrics | {name: value for name, value in shared.items() if math.isfinite(value)}


def _added(shares: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.sum([share[name] for share in shares])) for name in shares[0]} if shares else {}


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)
