"""One run as data: frozen, keyword-only dataclasses with checked ranges, and their JSON and flat forms.

A run is a :class:`TrainConfig`. Its flat form (``{"srft.rank": 16, ...}``) is what searches sample, MLflow stores as params and
the command line overrides; :func:`from_flat` is strict, so a misspelt key is an error that lists the known ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from srft.checks import ConfigError, check, check_kinds

Schedule = Literal["power", "constant", "linear", "cosine", "exponential", "step", "adaptive"]
TangentMode = Literal["penalty", "proximal", "projection"]
PriorScale = Literal["global", "group"]
TransferSource = Literal["adam", "two_step"]
Damped = Literal["both", "opposed", "prior"]
ReturnBy = Literal["sensitivity", "alike"]
DampedRate = Literal["reduced", "kept"]
FisherType = Literal["empirical", "mc"]
PriorEstimator = Literal["exact", "streaming", "kronecker"]
Baseline = Literal["none", "l2_sp", "ewc"]
Rates = Literal["uniform", "published", "published_fe108"]
_Plain = Literal["full", "aux", "head", "bias", "lora", "adapter", "prompt"]
_Regularized = Literal["srft", "srft-aux", "srft-head", "srft-bias", "srft-lora", "srft-adapter", "srft-prompt"]
Paradigm = Literal[_Plain, _Regularized]
PairRule = Literal["near", "published"]
Augmentation = Literal["joint", "published"]
Decoding = Literal["exact", "reduced"]
Spread = Literal["all", "sequences"]
Loader = Literal["local", "ray"]
Modality = Literal["rgb", "rgbe", "rgbd", "rgbt"]
Precision = Literal["fp32", "bf16", "fp16"]
RateDecay = Literal["cosine", "constant", "step"]
Strategy = Literal["ddp", "fsdp2"]
Benchmark = Literal["", "fe108", "visevent", "coesot", "depthtrack", "vot-rgbd2022", "lasher", "rgbt234", "got10k", "lasot", "own"]
Preset = Literal["tiny", "small", "base", "base_384"]

__all__ = [
    "LAYOUT",
    "PUBLISHED_FRAMES",
    "BaselineConfig",
    "ConfigError",
    "DataConfig",
    "OptimConfig",
    "SRFTConfig",
    "TrackerConfig",
    "TrainConfig",
    "to_flat",
]

PUBLISHED_FRAMES = 20
"""Fewest frames of a sequence that the published rule draws pairs from."""

_BENCHMARKS: dict[Modality, tuple[str, ...]] = {
    "rgbe": ("fe108", "visevent", "coesot"),
    "rgbd": ("depthtrack", "vot-rgbd2022"),
    "rgbt": ("lasher", "rgbt234"),
    "rgb": ("got10k", "lasot"),
}


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    """The network: its size is a preset, see ``srft.model.architecture.PRESETS``."""

    preset: Preset = "tiny"
    """Size of backbone and inputs."""
    pretrained: str = "tiny_rgb"
    """Weights of the RGB tracker that tuning starts from: the name of a shipped file or a path to a safetensors file."""
    freeze_head: bool = True
    """Keep the box head as pre-trained, its normalization statistics included."""
    drop_path: float = 0.0
    """Share of samples that skip the last block's residual branches in training; rises linearly from 0 at the first block."""
    grad_checkpointing: bool = False
    """Recompute every block in the backward pass: less memory, a third more time."""

    def __post_init__(self) -> None:
        check_kinds(self, "tracker.")
        check(0 <= self.drop_path < 1, "tracker.drop_path", self.drop_path, "0 to below 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which sequences, and how template/search pairs are drawn from them."""

    modality: Modality = "rgbe"
    """Auxiliary modality of the target domain. A benchmark has its own; ``rgb`` leaves its auxiliary frames out."""
    benchmark: Benchmark = ""
    """Train on a benchmark's training part and validate on sequences carved from it; empty for the synthetic world."""
    root: str = ""
    """Folder of the benchmark as it was downloaded, an absolute path; or of a pack of it, on this machine or in an object store."""
    source_benchmark: Benchmark = ""
    """RGB source domain, for the prior and for what is forgotten; empty for the synthetic world."""
    source_root: str = ""
    """Folder of the source benchmark or of a pack of it, an absolute path or an address."""
    train_sequences: int = 24
    """Synthetic target-domain sequences to train on; of a benchmark all are used."""
    val_sequences: int = 12
    """Target-domain sequences that choose checkpoints and trials, at most; never the test sequences."""
    test_sequences: int = 24
    """Synthetic target-domain sequences that are scored once, at the end."""
    source_sequences: int = 16
    """Held-out RGB sequences of the source domain: what the tracker must not forget."""
    length: int = 32
    """Frames per synthetic sequence."""
    world_seed: int = 7
    """Seed of the procedural world (objects, backgrounds, motion), apart from the run's own seed."""
    train_world: int = -1
    """Seed of the world whose objects, backgrounds and motion the synthetic training sequences have; -1: ``world_seed``, as all others."""
    pool: int = 0
    """Pairs of frames that training draws from: how much target data there is. The run's seed draws each for itself, so that a few may be
    the same. 0: every pair of its sequences."""
    max_gap: int = 24
    """Largest number of frames between template and search frame of a pair."""
    center_jitter: float = 3.0
    """Search-crop shift, in target sizes times half, uniform."""
    scale_jitter: float = 0.25
    """Search-crop scale, standard deviation of the logarithm."""
    pairs: PairRule = "near"
    """Frames of a pair: visible and at most max_gap apart, or by the published rule, which widens the gap where need be."""
    augmentation: Augmentation = "joint"
    """Template and search crop are mirrored alike, or, as published, each once more for itself."""
    decode: Decoding = "exact"
    """Stored images are decoded exactly, or to a half, quarter or eighth where a crop shrinks them as much: faster, a little smoother."""
    loader_workers: int = 0
    """Processes per training process that make batches ahead; 0 makes them when they are needed. The samples are the same."""
    loader: Loader = "local"
    """Batches are made beside the training process, or by Ray Data tasks on any node of its cluster that has a CPU free."""
    spread: Spread = "all"
    """Each training process draws from all sequences, or from its own share of whole sequences, for data that no node holds in full."""

    def __post_init__(self) -> None:
        check_kinds(self, "data.")
        for name, root in (("benchmark", "root"), ("source_benchmark", "source_root")):
            benchmark, place = getattr(self, name), getattr(self, root)
            fits = Path(place).is_absolute() or "://" in place if benchmark else not place
            check(
                fits,
                f"data.{root}",
                place,
                f"an absolute path or an address for {benchmark}" if benchmark else f"empty without data.{name}",
            )
        if self.modality != "rgb":
            modality = next((modality for modality, names in _BENCHMARKS.items() if self.benchmark in names), self.modality)
            object.__setattr__(self, "modality", modality)
        check(self.world_seed >= 0, "data.world_seed", self.world_seed, "at least 0")
        for name in ("train_sequences", "val_sequences", "test_sequences", "source_sequences"):
            check(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        check(self.train_world >= -1, "data.train_world", self.train_world, "a seed of at least 0, or -1 for that of the world")
        check(self.pool >= 0, "data.pool", self.pool, "at least 0 pairs")
        check(self.length >= 8, "data.length", self.length, "at least 8 frames")
        drawn = self.pairs == "near" or bool(self.benchmark) or self.length >= PUBLISHED_FRAMES
        check(drawn, "data.length", self.length, f"at least {PUBLISHED_FRAMES} frames with data.pairs published")
        check(self.max_gap >= 1, "data.max_gap", self.max_gap, "at least 1 frame")
        check(self.center_jitter >= 0, "data.center_jitter", self.center_jitter, "at least 0")
        check(self.scale_jitter >= 0, "data.scale_jitter", self.scale_jitter, "at least 0")
        check(self.loader_workers >= 0, "data.loader_workers", self.loader_workers, "at least 0")


@dataclass(frozen=True, kw_only=True)
class SRFTConfig:
    """The method. Symbols in brackets are those of the documentation."""

    rank: int = 16
    """Eigenpairs of the prior kept per operation [K]; 0 keeps none."""
    kappa: float = 1.0
    """Shape of the hand-over from prior to transfer sensitivity [kappa]."""
    schedule: Schedule = "power"
    """Prior weight over progress [w(t)]."""
    prior_strength: float = 100.0
    """Weight of the tangent-space term [lambda_p]; 0 disables it."""
    damping_strength: float = 0.0
    """Weight of the element-wise damping [lambda_d], 0 to 1; 0 disables it."""
    damping_range: tuple[float, float] = (0.25, 0.65)
    """Damping of the least and of the most sensitive element [m_min, m_max]."""
    damped: Damped = "both"
    """What is damped as the prior hands over: what the target pulls at, as released; what it does not pull at; or all elements alike."""
    damped_rate: DampedRate = "reduced"
    """Damping also lowers the mean learning rate, or, divided by its mean, only shares it out."""
    mode: TangentMode = "penalty"
    """How the tangent-space term acts on the step."""
    scale: PriorScale = "global"
    """What makes eigenvalues dimensionless: the mean top eigenvalue of all operations, or each operation's own where it keeps one."""
    transfer: TransferSource = "adam"
    """Running mean of squared gradients: the optimizer's second moment, or the mean of this and the last step."""
    fisher: FisherType = "empirical"
    """Gradients of the prior: of the loss at the annotated box, or at a label drawn from the model's own score map."""
    fisher_samples: int = 256
    """RGB pairs of the source domain that the prior is estimated from [N]."""
    estimator: PriorEstimator = "exact"
    """How: from all gradients at once, in bounded memory, or as Kronecker products (many eigenpairs of large networks)."""
    diagonal: bool = False
    """Also keep what the eigenpairs leave out of the diagonal: low rank + diagonal; costs a copy of the pre-trained weights."""
    give_back: float = 3.0
    """How far tuned weights return to their pre-trained values, each by its prior sensitivity, before they are validated and exported
    [rho]; training goes on from the weights as they are. 0: not at all."""
    give_back_sequences: int = 24
    """Target training sequences up to which rho is as given; with more it falls in proportion, as they outweigh what was known before.
    0: it never falls."""
    give_back_by: ReturnBy = "sensitivity"
    """What says how far a weight returns: its prior sensitivity, or nothing, all alike (the interpolation of weights)."""
    aux_share: float = 0.1
    """Share of the tangent-space term, and of what is given back, in the auxiliary stream: it starts from copied weights, but the source
    domain, which the prior was estimated on, never goes through it."""
    refresh: int = 10
    """Steps between two refreshes of the transfer statistics [R]."""

    def __post_init__(self) -> None:
        check_kinds(self, "srft.")
        check(0 <= self.rank <= 1024, "srft.rank", self.rank, "0 to 1024")
        check(self.kappa > 0, "srft.kappa", self.kappa, "a positive number")
        check(self.prior_strength >= 0, "srft.prior_strength", self.prior_strength, "at least 0")
        check(0 <= self.damping_strength <= 1, "srft.damping_strength", self.damping_strength, "0 to 1")
        low, high = self.damping_range
        check(0 <= low <= high <= 1, "srft.damping_range", self.damping_range, "0 <= m_min <= m_max <= 1")
        known = self.scale == "global" or self.rank > 0 or not self.diagonal
        check(known, "srft.scale", self.scale, "global with srft.rank 0: an operation's own scale is the largest eigenvalue that it keeps")
        moves = self.damped_rate == "reduced" or self.damping_strength * (low + high) < 2
        check(moves, "srft.damped_rate", self.damped_rate, "reduced where damping_strength and damping_range leave nothing of the rate")
        check(self.fisher_samples >= 1, "srft.fisher_samples", self.fisher_samples, "at least 1")
        check(self.give_back >= 0, "srft.give_back", self.give_back, "at least 0")
        check(self.give_back_sequences >= 0, "srft.give_back_sequences", self.give_back_sequences, "at least 0")
        check(self.aux_share >= 0, "srft.aux_share", self.aux_share, "at least 0")
        check(self.refresh >= 1, "srft.refresh", self.refresh, "at least 1 step")

    @property
    def uses_prior(self) -> bool:
        """Whether anything asks for the prior sensitivity."""
        return self.rank > 0 or self.diagonal or self.give_back > 0


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What SRFT is compared with: terms that hold every weight near its pre-trained value."""

    kind: Baseline = "none"
    """None, all weights alike (L2-SP), or each by the diagonal of the Fisher matrix (EWC)."""
    strength: float = 1.0
    """Weight of the term."""
    decoupled: bool = True
    """After the optimizer's step, as AdamW's weight decay; otherwise inside the gradient."""

    def __post_init__(self) -> None:
        check_kinds(self, "baseline.")
        check(self.strength >= 0, "baseline.strength", self.strength, "at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, batch and length of the run."""

    lr: float = 3e-4
    """Peak learning rate."""
    rates: Rates = "uniform"
    """Learning rates of parameter groups relative to ``lr``: all alike, or those of the published recipes (two streams)."""
    weight_decay: float = 1e-4
    """Decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down. 0 disables it."""
    batch_size: int = 16
    """Pairs per step, over all workers together."""
    lr_batch: int = 0
    """Batch size that ``lr`` is meant for: the rate is scaled by ``batch_size / lr_batch``; 0 takes it as it is."""
    accumulate: int = 1
    """Parts that each worker's share of a batch goes through the network in; saves memory, changes nothing else."""
    precision: Precision = "fp32"
    """Arithmetic of forward and backward; weights, losses and steps stay float32. fp16 scales the loss and skips steps that overflow."""
    ema: float = 0.0
    """Decay of the running mean of the weights, which is then validated and exported, such as 0.999; 0 keeps none."""
    decay: RateDecay = "cosine"
    """Learning rate after warm-up: half a cosine to zero, constant, or a tenth from ``drop_epoch`` on (as published)."""
    drop_epoch: int = 1
    """Epoch, from 0, at which ``decay=step`` lowers the rate to a tenth."""
    epochs: int = 4
    """Validations and checkpoints per run."""
    steps_per_epoch: int = 40
    """Optimizer steps per epoch."""
    warmup: float = 0.05
    """Share of all steps over which the learning rate rises from zero."""

    def __post_init__(self) -> None:
        check_kinds(self, "optim.")
        check(0 < self.lr < 1, "optim.lr", self.lr, "between 0 and 1")
        check(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "at least 0")
        check(self.grad_clip >= 0, "optim.grad_clip", self.grad_clip, "at least 0")
        for name in ("batch_size", "epochs", "steps_per_epoch", "accumulate", "drop_epoch"):
            check(getattr(self, name) >= 1, f"optim.{name}", getattr(self, name), "at least 1")
        check(self.lr_batch >= 0, "optim.lr_batch", self.lr_batch, "at least 0")
        check(0 <= self.ema < 1, "optim.ema", self.ema, "at least 0 and below 1")
        check(0 <= self.warmup < 1, "optim.warmup", self.warmup, "0 to 1")

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One fine-tuning run, complete."""

    name: str = "run"
    """What the run is called; with the hash of everything else it is the run's identity."""
    paradigm: Paradigm = "srft"
    """What trains: everything, all but the RGB stream (aux), the box head, biases, or parts that are added; with srft- in front (srft is
    everything), regularized."""
    seed: int = 0
    """Batch order, augmentation and initialization of new parameters."""
    workers: int = 1
    """Training processes; one trains in the calling process, more are a Ray Train run."""
    min_workers: int = 0
    """Fewest processes an elastic run goes on with when nodes are lost, until they come back; 0 waits for all ``workers``."""
    strategy: Strategy = "ddp"
    """How several workers hold the network: each all of it, or each a shard of its parameters and of the optimizer's state (FSDP2)."""
    checkpoint_steps: int = 0
    """Steps between checkpoints inside an epoch, of which the newest is kept; 0 writes them at the ends of epochs only."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    srft: SRFTConfig = field(default_factory=SRFTConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        check_kinds(self, "")
        check(bool(self.name) and "/" not in self.name, "name", self.name, "a non-empty name without '/'")
        check(self.seed >= 0, "seed", self.seed, "at least 0")
        check(self.workers >= 1, "workers", self.workers, "at least 1")
        plain = self.baseline.kind == "none" or not self.paradigm.startswith("srft")
        check(plain, "baseline.kind", self.baseline.kind, f"none with paradigm {self.paradigm}: it is what SRFT is compared with")
        two_streams = self.data.modality != "rgb"
        check(self.optim.rates == "uniform" or two_streams, "optim.rates", self.optim.rates, "uniform for a single stream (modality rgb)")
        aux = self.paradigm.removeprefix("srft-") in ("aux", "prompt")
        single = "full, head, bias, lora or adapter with data.modality rgb, a single stream"
        check(two_streams or not aux, "paradigm", self.paradigm, single)
        srft, regularized = self.srft, self.paradigm.startswith("srft")
        estimated = self.baseline.kind == "ewc" or (regularized and srft.uses_prior)
        shared = not estimated or srft.estimator == "kronecker" or srft.fisher_samples >= self.workers
        expected = f"at least {self.workers}, one for each of workers, or srft.estimator kronecker"
        check(shared, "srft.fisher_samples", srft.fisher_samples, expected)
        check(0 <= self.min_workers <= self.workers, "min_workers", self.min_workers, f"0 to workers ({self.workers})")
        alone = self.strategy == "ddp" or self.baseline.kind == "none"
        check(alone, "strategy", self.strategy, f"ddp with baseline.kind {self.baseline.kind}, which holds copies of whole weights")
        check(self.checkpoint_steps >= 0, "checkpoint_steps", self.checkpoint_steps, "at least 0")
        for workers in range(self.min_workers or self.workers, self.workers + 1):
            parts = workers * self.optim.accumulate
            expected = f"a multiple of {parts}: {workers} workers with optim.accumulate {self.optim.accumulate}"
            check(self.optim.batch_size % parts == 0, "optim.batch_size", self.optim.batch_size, expected)

    def digest(self) -> str:
        """Identity of the run's settings.

        Returns:
            Eight hex digits that change whenever a setting does, except for the name, how it is laid out over workers, and how often
            it is saved.
        """
        flat = {key: value for key, value in to_flat(self).items() if key not in LAYOUT}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8]


BEFORE: Mapping[str, Any] = {"srft.give_back": 0.0, "srft.give_back_sequences": 0, "srft.aux_share": 1.0}
"""What runs did that were recorded before these settings existed, where that is not the default."""

LAYOUT = ("name", "workers", "min_workers", "strategy", "checkpoint_steps", "data.loader_workers", "data.loader")
"""Settings that say what a run is called and how it is carried out, not what it trains."""


def to_flat(config: TrainConfig) -> dict[str, Any]:
    """The configuration as one level of dotted keys.

    Args:
        config: a run.

    Returns:
        ``{"optim.lr": 3e-4, ...}``, JSON types only (tuples become lists).
    """

    def walk(value: Any, prefix: str) -> dict[str, Any]:
        if dataclasses.is_dataclass(value):
            out: dict[str, Any] = {}
            for f in dataclasses.fields(value):
                out |= walk(getattr(value, f.name), f"{prefix}.{f.name}" if prefix else f.name)
            return out
        return {prefix: list(value) if isinstance(value, tuple) else value}

    return walk(config, "")
