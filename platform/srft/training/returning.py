"""Trackers that one run gives for several strengths of giving back, without training again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from srft.config import ConfigError, ReturnBy, TrainConfig
from srft.method.giving_back import GivingBack
from srft.method.paradigms import add_parts, select_trainable
from srft.model.pretrained import load_tracker
from srft.model.tracker import MultiModalTracker
from srft.settings import recorded
from srft.training import checkpoint
from srft.training.prior import carry, source_prior
from srft.training.state import read_tensors, written_names

__all__ = ["trackers", "weights_as_trained"]


def weights_as_trained(folder: Path) -> dict[str, Tensor]:
    """The weights that training went on from, which are not what was exported if the run gives back or keeps a running mean.

    Args:
        folder: an ``epoch_*`` directory. One that is incomplete or altered is a ``checkpoint.CheckpointError``.

    Returns:
        All weights by name.
    """
    saved = checkpoint.load(folder)
    names = [name.removeprefix("raw.") for name in written_names(saved.tensors) if name.startswith("raw.")]
    raw = {name: torch.zeros_like(saved.weights[name]) for name in names}
    if raw:
        read_tensors(saved.tensors, {f"raw.{name}": values for name, values in raw.items()})
    return saved.weights | raw


def trackers(
    folder: Path, cache: Path, *, aux_share: float | None = None, by: ReturnBy = "sensitivity"
) -> tuple[TrainConfig, Callable[[float], MultiModalTracker]]:
    """What a run would have exported under other strengths; of a run with a running mean, of the weights without it.

    Args:
        folder: an ``epoch_*`` directory of a run that trained parts that the pre-trained tracker has, regularized or not.
        cache: folder of priors and rendered sequences; a prior that is missing is estimated.
        aux_share: of the auxiliary stream; the run's own when None.
        by: what says how far a weight returns.

    Returns:
        The run's configuration, and a function from a strength to the tracker, in eval mode, which the next call changes.

    Raises:
        ConfigError: the run trained added parts, which have no pre-trained values.
    """
    config = recorded(checkpoint.read_meta(folder).config, source=str(folder))
    share = config.srft.aux_share if aux_share is None else aux_share
    network = load_tracker(config.tracker.pretrained, streams=1 if config.data.modality == "rgb" else 2)
    start = {name: values.clone() for name, values in network.state_dict().items()}
    if add_parts(network, config.paradigm):
        raise ConfigError(
            f"{folder}: paradigm is {config.paradigm}, which trains added parts; expected full, srft, aux, bias or head: their weights all "
            "have pre-trained values"
        )
    select_trainable(network, config.paradigm, freeze_head=config.tracker.freeze_head)
    wanted = dataclasses.replace(config, srft=dataclasses.replace(config.srft, give_back=1.0))  # A prior with its diagonal.
    prior = carry(source_prior(wanted, cache).truncated(0), network, aux_share=share)
    trained = weights_as_trained(folder)

    def given_back(strength: float) -> MultiModalTracker:
        network.load_state_dict(GivingBack.of(prior, start, strength, alike=by == "alike")(trained))
        return network.eval()

    return config, given_back
