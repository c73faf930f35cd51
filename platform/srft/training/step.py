"""Fine-tuning, the same for every layout: one process is the reference, workers are told who they are by a :class:`Worker`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from srft.config import BaselineConfig, ConfigError, TrainConfig
from srft.data.domain import load_domain
from srft.data.loader import PairLoader
from srft.data.pairs import PairSampler
from srft.data.sampling import dealt
from srft.data.sequence import Domain
from srft.method.baselines import attach, diagonals, ewc, l2_sp
from srft.method.giving_back import GivingBack, strength_with
from srft.method.optimizer import SRFTAdamW
from srft.method.paradigms import RATES, add_parts, parameter_groups, select_trainable, trains_pretrained, what_trains
from srft.method.prior import PriorSensitivity, weights_hash
from srft.method.sparsity import LocalExchange
from srft.model.architecture import Architecture, preset_of
from srft.model.pretrained import load_tracker
from srft.model.tracker import MultiModalTracker
from srft.settings import recorded
from srft.training import checkpoint
from srft.training.checkpoint import Progress
from srft.training.epoch import EpochReport, Training
from srft.training.prior import carry, source_prior, steps_use_diagonal, wants_prior
from srft.training.saving import Checkpointer
from srft.training.update import RunningMean, Updater
from srft.training.worker import LocalEnergies, Worker

__all__ = ["EpochReport", "Worker", "build", "fine_tune", "prepare", "run", "tuned_tracker"]


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
    tracks the sequences online, shared among the workers. A checkpoint is written after each epoch, every ``checkpoint_steps`` steps, and
    when the worker is told to end, which is then a ``Told``. Large ones are written while training goes on.

    Args:
        config: the run.
        domain: what to train and validate on.
        prior: of the pre-trained RGB tracker; see ``srft.training.prior.wants_prior``.
        directory: of the checkpoints.
        worker: which worker this is.
        on_epoch: called after each epoch, once its checkpoint is complete or, if it is large, copied.
        resume: go on from the directory's newest valid checkpoint, if there is one; without it a directory with one is refused.

    Returns:
        The last epoch's report. A loss or gradient that is not finite is a FloatingPointError that names epoch and step, before the
        update and on every worker; a prior that does not fit the tracker is a ValueError.

    Raises:
        ConfigError: the directory holds checkpoints that this run may not go on from.
        ValueError: there is nothing to train.
    """
    worker = worker or Worker()
    if not resume and (found := checkpoint.latest(directory)) is not None:
        raise ConfigError(f"{found}: the directory holds checkpoints of an earlier start; resume it or choose another directory")
    training = build(config, domain, prior, worker, Checkpointer(directory, config, worker))
    report = training.restore(directory) if resume else None
    training.checkpoints.expect(training.network.state_dict(), training.resumable())
    try:
        for epoch in range(training.epoch, config.optim.epochs):
            report = EpochReport(epoch=epoch, step=training.steps_done(epoch + 1), metrics=training.run_epoch(epoch, domain))
            training.save(Progress(epoch=epoch, step=report.step, metrics=report.metrics))
            if on_epoch:
                on_epoch(report)
            if epoch + 1 < config.optim.epochs:
                training.heed(worker.told())
    finally:
        training.loader.close()
        training.checkpoints.wait()
    if report is None:
        raise ValueError(f"{directory}: nothing to train and nothing to resume from")
    return report


def prepare(config: TrainConfig, cache: Path, worker: Worker | None = None) -> tuple[Domain, PriorSensitivity | None]:
    """Load a run's sequences and prior, or make and keep them; all workers together.

    Args:
        config: the run.
        cache: folder of both, on storage shared by all workers.
        worker: which worker this is.

    Returns:
        The sequences, and the prior if the run needs one.
    """
    worker = worker or Worker()
    domain = load_domain(config.data, cache) if worker.rank == 0 else None
    worker.gather(None)  # The first makes what is missing.
    domain = domain or load_domain(config.data, cache)
    return domain, source_prior(config, cache, worker=worker) if wants_prior(config) else None


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
        cache: folder of rendered sequences and priors, shared by runs.
        directory: of the checkpoints.
        worker: which worker this is.
        on_epoch: called after each epoch.
        resume: go on from the newest valid checkpoint.

    Returns:
        The last epoch's report.
    """
    domain, prior = prepare(config, cache, worker)
    return fine_tune(config, domain, prior, directory=directory, worker=worker, on_epoch=on_epoch, resume=resume)


def tuned_tracker(folder: Path) -> MultiModalTracker:
    """The tracker of a checkpoint.

    Args:
        folder: an ``epoch_*`` directory. One that is incomplete or altered is a ``checkpoint.CheckpointError``.

    Returns:
        The tracker in eval mode, with the parts that its paradigm added.
    """
    saved = checkpoint.load(folder)
    config = recorded(saved.meta.config, source=str(folder))
    network = load_tracker(config.tracker.pretrained, streams=1 if config.data.modality == "rgb" else 2)
    add_parts(network, config.paradigm, seed=config.seed)
    network.load_state_dict(saved.weights)
    return network.eval()


def build(config: TrainConfig, domain: Domain, prior: PriorSensitivity | None, worker: Worker, checkpoints: Checkpointer) -> Training:
    """Network, optimizer, sampler and exchange of a run, at its start; collective.

    Args:
        config: the run.
        domain: what to train on.
        prior: of the pre-trained RGB tracker.
        worker: which worker this is.
        checkpoints: of the run.

    Returns:
        The parts.

    Raises:
        ConfigError: the weights are not of the run's preset.
        ValueError: a run that needs a prior comes without, or with another tracker's.
    """
    _, regularized = what_trains(config.paradigm)
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
    if config.baseline.kind != "none" and not trains_pretrained(config.paradigm, freeze_head=config.tracker.freeze_head):
        raise ConfigError(
            f"baseline.kind is {config.baseline.kind}, but paradigm {config.paradigm} with a frozen head trains added parts only, which "
            "have no pre-trained values to be held near; choose paradigm full, or baseline.kind none"
        )
    carried: PriorSensitivity | None = None
    if wants_prior(config):
        if prior is None:
            raise ValueError(
                f"paradigm {config.paradigm} with srft.rank {config.srft.rank} and baseline.kind {config.baseline.kind} needs a prior, "
                "None was given; pass one (source_prior)"
            )
        single = load_tracker(config.tracker.pretrained, streams=1)
        if prior.base_hash != (identity := weights_hash(single.state_dict())):
            raise ValueError(
                f"the prior is of weights {prior.base_hash}, {config.tracker.pretrained} holds {identity}; estimate a prior of the latter"
            )
        carried = carry(prior.truncated(config.srft.rank), network, aux_share=config.srft.aux_share)
    giving: GivingBack | None = None
    if regularized and carried is not None and config.srft.give_back > 0:
        strength = strength_with(config.srft.give_back, len(domain.train), up_to=config.srft.give_back_sequences)
        giving = GivingBack.of(carried, network.state_dict(), strength, alike=config.srft.give_back_by == "alike")
    if carried is not None and not steps_use_diagonal(config):
        carried = carried.without_diagonal()
    model = worker.wrap(network)  # Before the optimizer is built: it may turn parameters into shards.
    optimizer = SRFTAdamW(
        parameter_groups(network, RATES[config.optim.rates], lr=config.optim.lr),
        total_steps=config.optim.total_steps,
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        srft=config.srft if regularized else None,
        prior=carried if regularized else None,
        fused=worker.whole,
    )
    _attach_baseline(config.baseline, [(n, p) for n, p in network.named_parameters() if n in trainable - new], optimizer, carried)
    energies = LocalEnergies(network)
    if worker.rank:  # What is dropped differs from worker to worker, as samples do.
        torch.manual_seed(hash((config.seed, worker.rank)))
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return Training(
        config=config,
        worker=worker,
        network=network,
        optimizer=optimizer,
        update=Updater(model, optimizer, config.optim),
        energies=energies if regularized and energies.attach(model) else None,
        mean=RunningMean(trained, config.optim.ema) if config.optim.ema else None,
        giving=giving,
        loader=_loader(config, domain, network.arch, worker),
        exchange=worker.statistics or LocalExchange(config.srft.refresh),
        checkpoints=checkpoints,
        regularized=regularized,
    )


def _loader(config: TrainConfig, domain: Domain, arch: Architecture, worker: Worker) -> PairLoader:
    data, optim = config.data, config.optim
    train = dealt(domain.train, worker.rank, worker.world_size) if data.spread == "sequences" else domain.train
    kind = PairLoader
    if data.loader == "ray":
        from srft.training.ray_loader import RayPairLoader  # here: training in one process does without Ray

        kind = RayPairLoader
    return kind(
        PairSampler.of(train, arch, data, seed=config.seed),
        epochs=optim.epochs,
        steps=optim.steps_per_epoch,
        batch_size=optim.batch_size,
        rank=worker.rank,
        world_size=worker.world_size,
        workers=data.loader_workers,
        device=worker.device,
    )


def _attach_baseline(
    baseline: BaselineConfig, named: list[tuple[str, nn.Parameter]], optimizer: SRFTAdamW, prior: PriorSensitivity | None
) -> None:
    # Before anything is restored: what the parameters are now is what they are held near to.
    if baseline.kind == "l2_sp":
        attach(l2_sp(named, strength=baseline.strength), optimizer, decoupled=baseline.decoupled)
    if baseline.kind == "ewc" and prior is not None:
        attach(ewc(named, diagonals(prior, named), strength=baseline.strength), optimizer, decoupled=baseline.decoupled)
