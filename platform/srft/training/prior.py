"""The prior sensitivity of a run: estimated once on the RGB source domain, kept on disk, carried to two streams."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from srft.config import TrainConfig
from srft.data.pairs import Batch, PairSampler
from srft.data.sequence import Sequence
from srft.data.synthetic import WORLD_VERSION, sequences
from srft.method.fisher import PriorSensitivity, estimate_prior, load_prior, weights_hash
from srft.method.groups import groups_of
from srft.method.paradigms import select_trainable, what_trains
from srft.method.prior import FORMAT
from srft.model.losses import center_label_loss, tracking_loss
from srft.model.pretrained import load_tracker, two_stream_sources
from srft.model.tracker import MultiModalTracker

log = logging.getLogger(__name__)
_SOURCE_SEQUENCES = 32
_USUAL_RANK = 64


def source_prior(config: TrainConfig, cache: Path, *, rank: int | None = None) -> PriorSensitivity:
    """The prior of a run's pre-trained RGB tracker, from the cache or estimated now.

    Args:
        config: the run; its weights, source data, Fisher settings and trainable parameters are the prior's identity.
        cache: folder of priors and rendered sequences.
        rank: eigenpairs kept per operation [K]; None keeps enough for any usual run, which uses its first ``srft.rank``.

    Returns:
        The prior of the single-stream tracker. A cached file that is damaged or belongs to other weights is a ValueError.
    """
    single = load_tracker(config.tracker.pretrained, streams=1)
    identity = weights_hash(single.state_dict())
    srft, data = config.srft, config.data
    rank = max(_USUAL_RANK, srft.rank) if rank is None else rank
    freeze_head = config.tracker.freeze_head and what_trains(config.paradigm)[0] != "head"
    drawn = [FORMAT, WORLD_VERSION, _SOURCE_SEQUENCES, data.length, data.max_gap, data.center_jitter, data.scale_jitter, freeze_head]
    variant = f"{srft.fisher}-n{srft.fisher_samples}-k{rank}-w{data.world_seed}-{hashlib.sha256(repr(drawn).encode()).hexdigest()[:8]}"
    path = cache / f"prior-{identity[:12]}-{variant}.safetensors"
    if path.exists():
        return load_prior(path, base_hash=identity)
    train = tuple(sequences("source-train", _SOURCE_SEQUENCES, seed=data.world_seed, length=data.length, cache=cache))
    trainable = select_trainable(single, "full", freeze_head=freeze_head)
    parameters = dict(single.named_parameters())
    log.info("estimating the prior sensitivity from %d source pairs", srft.fisher_samples)
    prior = estimate_prior(
        single,
        _empirical_loss if srft.fisher == "empirical" else _sampled_loss,
        _samples(single, train, srft.fisher_samples, config),
        rank=rank,
        fisher_type=srft.fisher,
        groups=groups_of({name: parameters[name] for name in trainable}),
        data=f"synthetic source-train, world {data.world_seed}",
        seed=data.world_seed,
        dtype=torch.bfloat16,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    prior.save(path)
    return prior


def carry(prior: PriorSensitivity, network: MultiModalTracker) -> PriorSensitivity:
    """The prior by the names of a two-stream tracker; copies of a block share its eigenvectors.

    Args:
        prior: of the single-stream tracker.
        network: the tracker to train.

    Returns:
        The prior keyed by the network's trainable parameters and on its device; keys are unchanged for a single-stream network.
        On the CPU the eigenvectors are widened to float32: products with bfloat16 ones take twice as long there.
    """
    device = next(network.parameters()).device
    dtype = torch.float32 if device.type == "cpu" else None
    prior = replace(prior, groups={name: group.to(device, dtype) for name, group in prior.groups.items()})
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    if network.streams == 1:
        return prior.carried({name: name for name in names})
    return prior.carried(two_stream_sources(network.arch.fusion_after, names))


def _samples(network: MultiModalTracker, train: tuple[Sequence, ...], count: int, config: TrainConfig) -> Iterator[Batch]:
    usable = tuple(s for s in train if s.shortest_gap <= config.data.max_gap)
    sampler = PairSampler(
        sequences=usable,
        arch=network.arch,
        seed=config.data.world_seed,
        max_gap=config.data.max_gap,
        center_jitter=config.data.center_jitter,
        scale_jitter=config.data.scale_jitter,
    )
    for i in range(count):
        yield sampler.batch(0, i, 1)


def _empirical_loss(network: nn.Module, sample: Batch) -> Tensor:
    return tracking_loss(network(sample.template, sample.search), sample.boxes)["loss"]


def _sampled_loss(network: nn.Module, sample: Batch) -> Tensor:
    return center_label_loss(network(sample.template, sample.search))
