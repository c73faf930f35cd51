"""``srft data preview``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Draw strips of frames with their annotated boxes, the auxiliary modality below RGB.

    srft data preview davis-cars --out cars

    srft data preview rgbd --split target-test --first 3 --sequences 2 --out depth
    """

    source: tyro.conf.Positional[Literal["davis-cars", "rgb", "rgbe", "rgbd", "rgbt"]]
    """The shipped recording, or synthetic sequences of a modality."""
    out: Path = Path("preview")
    """Folder for one PNG per sequence."""
    split: Literal["source-train", "source-test", "target-train", "target-val", "target-test"] = "target-test"
    """Of the synthetic world."""
    first: int = 0
    """Number of the first sequence shown."""
    sequences: int = 1
    """How many are shown."""
    length: int = 32
    """Frames of a synthetic sequence."""
    seed: int = 7
    """Of the synthetic world."""
    frames: int = 6
    """Pictures in a strip."""
    height: int = 160
    """Of a picture, pixels."""


def run(command: Preview) -> None:
    """Draw and say where.

    Args:
        command: the options.

    Raises:
        ValueError: there is no such sequence or nothing to draw.
    """
    if min(command.sequences, command.frames, command.height, command.length) < 1 or command.first < 0:
        raise ValueError("--sequences, --frames, --height and --length must be at least 1, --first at least 0")

    from srft.data import davis_cars
    from srft.data.synthetic import render_sequence
    from srft.evaluation.plots import picture_strip

    wanted = range(command.first, command.first + command.sequences)
    if command.source == "davis-cars":
        shown = davis_cars.load()[wanted.start : wanted.stop]
        if not shown:
            raise ValueError(f"--first {command.first}: the recording has {len(davis_cars.SEQUENCES)} sequences, numbered from 0")
    else:
        render = lambda i: render_sequence(command.split, i, seed=command.seed, length=command.length, modality=command.source)
        shown = [render(index) for index in wanted]
    for sequence in shown:
        path = command.out / f"{command.source}_{Path(sequence.name).name}.png"
        picture_strip(sequence, {}, path, frames=command.frames, height=command.height)
        print(f"{path}  {', '.join(sequence.attributes)}".rstrip())
