"""``srft trax``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Trax:
    """Let vot-toolkit, or any client of the TraX protocol, drive a tracker over standard input and output.

    In the workspace's trackers.ini: protocol = trax, command = srft trax outputs/winner/epoch_0011. A workspace of srft evaluate
    has this line already.

    srft trax outputs/winner/epoch_0011 --aux depth --device cuda
    """

    weights: tyro.conf.Positional[str]
    """Name of shipped weights, a file, or a checkpoint directory."""
    aux: Literal["depth", "ir", "none"] | None = None
    """The channel beside colour; depth for trackers of two streams when left out."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; a GPU if there is one when left out."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network."""


def run(command: Trax) -> None:
    """Answer until the client quits.

    Args:
        command: the options.

    Raises:
        ValueError: a tracker of one stream is to look at two channels.
    """
    import sys

    import torch

    from srft.evaluation.online import OnlineTracker
    from srft.evaluation.trax import Channel, serve
    from srft.model.pretrained import load_tracker
    from srft.training.step import tuned_tracker

    folder = Path(command.weights)
    network = tuned_tracker(folder) if folder.is_dir() else load_tracker(command.weights)
    if network.streams == 1 and command.aux in ("depth", "ir"):
        raise ValueError(f"--aux {command.aux}: {command.weights} has one stream, for RGB alone; leave --aux out")
    aux = command.aux or ("depth" if network.streams == 2 else "none")
    channels: tuple[Channel, ...] = ("color",) if aux == "none" else ("color", aux)
    device = command.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tracker = OnlineTracker(network, device=device, precision=command.precision, rgb_only=len(channels) == 1)
    serve(tracker, sys.stdin, sys.stdout, channels=channels, name=folder.name)
