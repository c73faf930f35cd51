"""``srft data synth``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Synth:
    """Write synthetic sequences in the official layout of a benchmark: folders, names, image types, annotation formats, lists.

    srft data synth visevent /tmp/visevent

    srft data synth depthtrack /tmp/depthtrack --sequences 2 --length 60 --seed 3
    """

    benchmark: tyro.conf.Positional[Literal["fe108", "visevent", "coesot", "depthtrack", "vot-rgbd2022", "lasher", "rgbt234"]]
    """Whose layout; it decides the modality."""
    root: tyro.conf.Positional[Path]
    """Folder of the benchmark; made if need be. Sequences that are there already are not replaced."""
    sequences: int = 4
    """Sequences of each split; benchmarks that are published for testing only have one split."""
    length: int = 40
    """Frames of a sequence."""
    seed: int = 7
    """Of the world."""


def run(command: Synth) -> None:
    """Render and write.

    Args:
        command: the options.

    Raises:
        ValueError: there is nothing to write.
    """
    if command.sequences < 1 or command.length < 1:
        raise ValueError(f"--sequences {command.sequences} --length {command.length}; expected at least 1 of each")

    from tqdm import tqdm

    from srft.data.native import LAYOUTS, write_native
    from srft.data.synthetic import Split, record

    layout = LAYOUTS[command.benchmark]
    worlds: dict[str, Split] = {"train": "target-train", "test": "target-test"}
    with tqdm(total=command.sequences * len(layout.folders), desc=command.benchmark, unit="sequence", disable=None) as bar:
        for split in layout.folders:
            captures = (
                record(worlds[split], index, seed=command.seed, length=command.length, modality=layout.modality)
                for index in range(command.sequences)
            )
            folders = write_native(command.benchmark, command.root, captures, split=split, on_sequence=bar.update)
            print(f"{split:<5}  {len(folders)} sequences of {command.length} frames in {folders[0].parent}")
