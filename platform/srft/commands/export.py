"""``srft export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a tracker as an ONNX file, or as a program of torch.export.

    srft export tiny_rgb tracker.onnx --check

    srft export outputs/winner/epoch_0011 winner.onnx --uint8 --check

    srft export vitb_256_mae_32x4_ep300.pth.tar ostrack.pt2
    """

    weights: tyro.conf.Positional[str]
    """Name of shipped weights, a file, or a checkpoint directory."""
    out: tyro.conf.Positional[Path]
    """File to write: .onnx or .pt2."""
    streams: Literal[1, 2] | None = None
    """2 carries an RGB tracker into two streams."""
    preset: str | None = None
    """Size of the tracker, where the file does not say it."""
    uint8: bool = False
    """Take crops [B, H, W, C] of bytes and normalize inside the file."""
    check: bool = False
    """Run the file on random crops and compare it with the network before it gets its name."""


def run(command: Export) -> None:
    """Export and print what was written.

    Args:
        command: the options.

    Raises:
        ValueError: streams or preset are named for a checkpoint directory, which has its own.
    """
    from srft.model.export import export
    from srft.model.pretrained import load_tracker
    from srft.training.step import tuned_tracker

    folder = Path(command.weights)
    if folder.is_dir():
        if command.streams or command.preset:
            raise ValueError(f"--streams and --preset have no effect on {folder}: a checkpoint directory says both; leave them out")
        network = tuned_tracker(folder)
    else:
        network = load_tracker(command.weights, streams=command.streams, preset=command.preset)
    differences = export(network, command.out, uint8=command.uint8, check=command.check)
    size = f"{network.streams} stream(s), {command.out.stat().st_size / 1e6:.0f} MB"
    print(f"wrote {command.out}: {size}")
    for name, value in differences.items():
        print(f"  {name:<11} differs from the network by {value:.1e}")
