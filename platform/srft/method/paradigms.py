"""What trains: the paradigms that full and sensitivity-regularized fine-tuning are compared with."""

from __future__ import annotations

from torch import nn

from srft.config import Paradigm


def select_trainable(network: nn.Module, paradigm: Paradigm, *, freeze_head: bool) -> list[str]:
    """Set ``requires_grad`` of every parameter by the paradigm.

    Position embeddings never train, as in the published recipe. ``full`` and ``srft`` train the backbone, and the head unless it is
    frozen; ``head`` trains the head alone.

    Args:
        network: a tracker with submodules ``backbone`` and ``box_head``; changed in place.
        paradigm: what trains.
        freeze_head: keep the head as pre-trained (ignored by ``head``).

    Returns:
        Names of the trainable parameters.
    """
    names = []
    for name, parameter in network.named_parameters():
        in_head = name.startswith("box_head.")
        if paradigm == "head":
            train = in_head
        else:
            train = "pos_embed" not in name and not (in_head and freeze_head)
        parameter.requires_grad_(train)
        if train:
            names.append(name)
    return names
