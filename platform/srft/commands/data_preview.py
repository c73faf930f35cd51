"""``srft data preview``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import tyro

if TYPE_CHECKING:
    from srft.data.sequence import Sequence

Shown = Literal[
    "davis-cars", "rgb", "rgbe", "rgbd", "rgbt",
    "fe108", "visevent", "coesot", "depthtrack", "vot-rgbd2022", "lasher", "rgbt234", "got10k", "lasot", "own",
]  # fmt: skip
WORLD_SPLITS = ("target-test", "target-val", "target-train", "source-test", "source-train")
SPLITS = ("test", "train", "val", "trainval", "all")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Draw strips of frames with their annotated boxes, the auxiliary modality below RGB.

    srft data preview lasher /data/LasHeR --sequences 3 --out lasher

    srft data preview davis-cars --out cars

    srft data preview rgbd --split target-train --first 3 --out depth
    """

    source: tyro.conf.Positional[Shown]
    """A benchmark, the shipped recording, or synthetic sequences of a modality."""
    root: tyro.conf.Positional[Path | None] = None
    """Folder of the benchmark; nothing for the others."""
    out: Path = Path("preview")
    """Folder for one PNG per sequence."""
    split: str | None = None
    """test, train, val, trainval or all of a benchmark (test when left out); target-test, target-val, target-train, source-test or
    source-train of the synthetic world (target-test when left out)."""
    name: tuple[str, ...] = ()
    """Sequences of a benchmark by name, instead of --first and --sequences."""
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
        ValueError: there is nothing to draw.
    """
    if min(command.sequences, command.frames, command.height, command.length) < 1 or command.first < 0:
        raise ValueError("--sequences, --frames, --height and --length must be at least 1, --first at least 0")
    sequences = _sequences(command)
    if not sequences:
        raise ValueError(
            f"--first {command.first} --sequences {command.sequences}: no such sequence of {command.source}; they count from 0"
        )

    from srft.evaluation.plots import picture_strip

    for sequence in sequences:
        path = command.out / f"{command.source}_{Path(sequence.name).name}.png"
        picture_strip(sequence, {}, path, frames=command.frames, height=command.height)
        print(f"{path}  {', '.join(sequence.attributes)}".rstrip())


def _sequences(command: Preview) -> list[Sequence]:
    wanted = slice(command.first, command.first + command.sequences)
    if command.source in ("davis-cars", "rgb", "rgbe", "rgbd", "rgbt"):
        if command.root is not None or command.name:
            raise ValueError(f"{command.source} is no benchmark; expected no folder and no --name")
    elif command.root is None:
        raise ValueError(f"{command.source} needs the folder of the benchmark: srft data preview {command.source} ROOT")
    if command.source == "davis-cars":
        from srft.data import davis_cars

        if command.split is not None:
            raise ValueError(f"--split {command.split}: the recording has none; leave it out")
        return davis_cars.load()[wanted]
    if command.root is None:
        from srft.config import Modality
        from srft.data.synthetic import Split, render_sequence

        split = command.split or WORLD_SPLITS[0]
        if split not in WORLD_SPLITS:
            raise ValueError(f"--split {split}; expected one of {', '.join(WORLD_SPLITS)}")
        render = lambda index: render_sequence(
            cast("Split", split), index, seed=command.seed, length=command.length, modality=cast("Modality", command.source)
        )
        return [render(index) for index in range(wanted.start, wanted.stop)]

    from srft.data.benchmarks import open_benchmark

    split = command.split or SPLITS[0]
    if split not in SPLITS:
        raise ValueError(f"--split {split}; expected one of {', '.join(SPLITS)}")
    opened = open_benchmark(command.source, command.root, split=split, partial=True)
    if not command.name:
        return list(opened[wanted])
    known = {sequence.name: sequence for sequence in opened}
    if missing := [name for name in command.name if name not in known]:
        raise ValueError(f"--name {missing[0]}: not among the {len(known)} sequences of {split} in {command.root}")
    return [known[name] for name in command.name]
