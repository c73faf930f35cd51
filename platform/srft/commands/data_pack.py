"""``srft data pack``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Pack a benchmark into Arrow files that training reads like the benchmark itself. Called again, it goes on where it was stopped.

    srft data pack lasher /data/LasHeR /data/packs/lasher

    srft data pack visevent /data/VisEvent s3://bucket/visevent --context 10 --licence "research only" --source "VisEvent, 2021"

    srft train --set data.benchmark=lasher data.root=/data/packs/lasher --out outputs/lasher
    """

    benchmark: tyro.conf.Positional[str]
    """Name of the benchmark; ``srft data layouts`` lists them."""
    root: tyro.conf.Positional[Path]
    """Folder of the data set."""
    out: tyro.conf.Positional[str]
    """Folder of the pack, or an address that fsspec knows."""
    splits: tuple[Literal["train", "val", "trainval", "test", "all"], ...] = ("train", "val")
    """Parts to pack."""
    modality: Literal["rgbe", "rgbd", "rgbt"] | None = None
    """Of own data, what the auxiliary frames are, as data.modality says it in training; left out: events, or the benchmark's."""
    rgb_only: bool = False
    """Leave the auxiliary frames out."""
    partial: bool = False
    """Leave out sequences that are listed and not on the disk."""
    context: float | None = None
    """Of training frames keep only this many target sizes around the box, encoded again: cheap to decode; 10 suits the usual jitter."""
    quality: int = 95
    """JPEG quality of what is encoded again."""
    frames_per_shard: int = 4000
    """Whole sequences are added to a shard until it has as many frames."""
    workers: int | None = None
    """Processes; as many as there are cores when left out."""
    licence: str = "not stated"
    """Of the images, kept in the manifest."""
    source: str = "not stated"
    """Where the images are from, kept in the manifest."""


def run(command: Pack) -> None:
    """Pack, with a bar.

    Args:
        command: the options.
    """
    from tqdm import tqdm

    from srft.data.packing import pack
    from srft.data.shards import local_folder

    with tqdm(desc=command.benchmark, unit="frame", disable=None) as bar:

        def show(frames: int, total: int) -> None:
            bar.total = total
            bar.update(frames)

        manifest = pack(
            command.benchmark,
            command.root,
            command.out,
            splits=command.splits,
            modality="rgb" if command.rgb_only else command.modality,
            partial=command.partial,
            context=command.context,
            quality=command.quality,
            frames_per_shard=command.frames_per_shard,
            workers=command.workers,
            licence=command.licence,
            source=command.source,
            on_shard=show,
        )
    for split in manifest.splits:
        shards = [shard for shard in manifest.shards if shard.split == split]
        sequences, frames, size = (sum(getattr(shard, key) for shard in shards) for key in ("sequences", "frames", "bytes"))
        print(f"{split:<8}  {sequences} sequences, {frames} frames, {size / 2**20:.1f} MiB in {len(shards)} shards")
    print(f"{command.out}: train with data.benchmark={command.benchmark} data.root={local_folder(command.out) or command.out}")
