"""The prior sensitivity of a run: estimated once on the RGB source domain, kept on disk, carried to two streams."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from srft.config import PriorEstimator, TrainConfig
from srft.data.domain import source_training
from srft.data.pairs import Batch, PairSampler
from srft.data.sequence import Sequence
from srft.data.synthetic import WORLD_VERSION
from srft.method.fisher import PriorSensitivity, estimate_prior, load_prior, merge_priors, weights_hash
from srft.method.groups import groups_of
from srft.method.kronecker import estimate_prior_kronecker
from srft.method.paradigms import AUX_STREAM, matches, select_trainable, trains_pretrained, what_trains
from srft.method.prior import FORMAT
from srft.method.streaming import estimate_prior_streaming
from srft.model.losses import center_label_loss, tracking_loss
from srft.model.pretrained import load_tracker, two_stream_sources
from srft.model.tracker import MultiModalTracker
from srft.training.worker import Worker

log = logging.getLogger(__name__)
SOURCE_SEQUENCES = 32
_USUAL_RANK = 64
_ESTIMATORS: dict[PriorEstimator, Callable[..., PriorSensitivity]] = {
    "exact": estimate_prior,
    "streaming": estimate_prior_streaming,
    "kronecker": estimate_prior_kronecker,
}


def source_prior(config: TrainConfig, cache: Path, *, rank: int | None = None, worker: Worker | None = None) -> PriorSensitivity:
    """The prior of a run's pre-trained RGB tracker, from the cache or estimated now; each worker takes a share of the samples.

    Args:
        config: the run; its weights, source data, Fisher settings and trainable parameters are the prior's identity.
        cache: folder of priors and rendered sequences.
        rank: eigenpairs kept per operation [K]; None keeps enough for any usual run, which uses its first ``srft.rank``.
        worker: which worker this is; all of them call this.

    Returns:
        The prior of the single-stream tracker. A cached file that is damaged or belongs to other weights is a ValueError.
    """
    single = load_tracker(config.tracker.pretrained, streams=1)
    identity = weights_hash(single.state_dict())
    srft, data = config.srft, config.data
    rank, diagonal = max(_USUAL_RANK, srft.rank) if rank is None else rank, wants_diagonal(config)
    freeze_head = config.tracker.freeze_head and what_trains(config.paradigm)[0] != "head"
    drawn = [FORMAT, WORLD_VERSION, SOURCE_SEQUENCES, data.length, data.max_gap, data.center_jitter, data.scale_jitter, freeze_head]
    if data.source_benchmark:
        drawn += [data.source_benchmark, data.source_root]
    kind = f"{srft.estimator}-{srft.fisher}{'-diagonal' if diagonal else ''}"
    variant = f"{kind}-n{srft.fisher_samples}-k{rank}-w{data.world_seed}-{hashlib.sha256(repr(drawn).encode()).hexdigest()[:8]}"
    path = cache / f"prior-{identity[:12]}-{variant}.safetensors"
    worker = worker or Worker()
    if worker.gather(path.exists())[0]:
        return load_prior(path, base_hash=identity)
    train = source_training(data, SOURCE_SEQUENCES, cache)
    pairs = SourcePairs(single, train, config, worker)
    trainable = select_trainable(single, "full", freeze_head=freeze_head)
    parameters = dict(single.named_parameters())
    log.info("estimating the prior sensitivity from %d source pairs", srft.fisher_samples)
    estimate = functools.partial(
        _ESTIMATORS[srft.estimator],
        single,
        _empirical_loss if srft.fisher == "empirical" else _sampled_loss,
        pairs,
        fisher_type=srft.fisher,
        groups=groups_of({name: parameters[name] for name in trainable}),
        data=f"{data.source_benchmark} train" if data.source_benchmark else f"synthetic source-train, world {data.world_seed}",
        seed=data.world_seed + (0 if srft.estimator == "kronecker" else worker.rank),  # Its random products are those of all workers.
        diagonal=diagonal,
    )
    if worker.world_size == 1:
        prior = estimate(rank=rank, dtype=torch.bfloat16)
    elif srft.estimator == "kronecker":
        prior = estimate(rank=rank, dtype=torch.bfloat16, gather=worker.gather)
    else:  # A share that keeps all of its eigenpairs loses nothing; a stream keeps twice what is asked for.
        share = estimate(rank=len(pairs) if srft.estimator == "exact" else 2 * rank, dtype=torch.float32)
        prior = merge_priors(worker.gather(share), rank=rank, dtype=torch.bfloat16)
    if worker.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        prior.save(path)
    worker.gather(None)
    # What a resumed run will find; and the same for all workers, whatever rounding their own merging had.
    return load_prior(path, base_hash=identity) if diagonal or worker.world_size > 1 else prior


def wants_prior(config: TrainConfig) -> bool:
    """Whether a run needs a prior.

    Args:
        config: the run.

    Returns:
        True for a regularized run that keeps eigenpairs or the diagonal or gives back, and for EWC, if pre-trained weights train.
    """
    if not trains_pretrained(config.paradigm, freeze_head=config.tracker.freeze_head):
        return False
    return (what_trains(config.paradigm)[1] and config.srft.uses_prior) or config.baseline.kind == "ewc"


def wants_diagonal(config: TrainConfig) -> bool:
    """Whether a run needs the diagonal of its prior.

    Args:
        config: the run.

    Returns:
        True if its steps use it or it gives back.
    """
    return steps_use_diagonal(config) or config.srft.give_back > 0


def steps_use_diagonal(config: TrainConfig) -> bool:
    """Whether a run's steps use the diagonal of its prior.

    Args:
        config: the run.

    Returns:
        True for low rank + diagonal, and for EWC.
    """
    return config.srft.diagonal or config.baseline.kind == "ewc"


def carry(prior: PriorSensitivity, network: MultiModalTracker, *, aux_share: float = 1.0) -> PriorSensitivity:
    """The prior by the names of a two-stream tracker; copies of a block share its eigenvectors.

    Args:
        prior: of the single-stream tracker.
        network: the tracker to train.
        aux_share: share of the term that acts on copies in the auxiliary stream, which the source domain never goes through.

    Returns:
        The prior keyed by the network's trainable parameters and on its device; keys are unchanged for a single-stream network.
    """
    device = next(network.parameters()).device
    prior = replace(prior, groups={name: group.to(device) for name, group in prior.groups.items()})
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    if network.streams == 1:
        return prior.carried({name: name for name in names})
    carried = prior.carried(two_stream_sources(network.arch.fusion_after, names))
    share = lambda parameter: aux_share if matches(AUX_STREAM, parameter) else 1.0
    return replace(carried, groups={name: replace(group, share=share(group.group.parameter)) for name, group in carried.groups.items()})


class SourcePairs:
    """A worker's share of the pairs that a prior is estimated from, the same each time; one at a time in memory."""

    def __init__(self, network: MultiModalTracker, train: tuple[Sequence, ...], config: TrainConfig, worker: Worker) -> None:
        """Prepare.

        Args:
            network: whose crops are wanted.
            train: source sequences, see :func:`srft.data.domain.source_training`; those that no pair can be drawn from are left out.
            config: the run.
            worker: which share.
        """
        self.share = range(worker.rank, config.srft.fisher_samples, worker.world_size)
        self.sampler = PairSampler(
            sequences=tuple(s for s in train if s.shortest_gap <= config.data.max_gap),
            arch=network.arch,
            seed=config.data.world_seed,
            max_gap=config.data.max_gap,
            center_jitter=config.data.center_jitter,
            scale_jitter=config.data.scale_jitter,
        )

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[Batch]:
        return (self.sampler.batch(0, i, 1) for i in self.share)


def _empirical_loss(network: nn.Module, sample: Batch) -> Tensor:
    return tracking_loss(network(sample.template, sample.search), sample.boxes)["loss"]


def _sampled_loss(network: nn.Module, sample: Batch) -> Tensor:
    return center_label_loss(network(sample.template, sample.search))
