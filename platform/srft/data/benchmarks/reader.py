"""Benchmarks as sequences: annotations are read when a benchmark is opened, frames when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from srft.config import Modality
from srft.data.benchmarks.annotations import Annotation, Tree, read_annotation
from srft.data.benchmarks.images import NativeFrames
from srft.data.benchmarks.layouts import DataError, EventFile, Frames, Layout, layout_of
from srft.data.benchmarks.splits import Split, list_split, protocol_list
from srft.data.sequence import Sequence
from srft.data.shards import is_pack, open_pack

__all__ = ["auxiliary", "open_benchmark", "open_sequence", "read_offsets"]

_KINDS = {"rgbe": "event", "rgbd": "depth", "rgbt": "thermal"}


def open_benchmark(
    benchmark: str,
    root: str | Path,
    *,
    split: Split = "test",
    protocol: str | None = None,
    modality: Modality | None = None,
    partial: bool = False,
    min_size: float | None = None,
) -> tuple[Sequence, ...]:
    """Open the sequences of a benchmark as it was downloaded, or of a pack of it.

    Args:
        benchmark: one of ``srft.data.benchmarks.LAYOUTS``.
        root: its folder; or a pack of it (``srft.data.shards``), whose splits were settled when it was packed.
        split: ``train``, ``val`` (carved from train, never the test list), ``trainval``, ``test`` or ``all``.
        protocol: which of several published test lists.
        modality: ``rgb`` leaves the auxiliary frames out; None takes the benchmark's. Own data may name its kind.
        partial: leave out sequences that are listed and not on the disk, instead of an error.
        min_size: frames whose target is not wider and higher than this many pixels count as absent. None is the published training
            rule for ``train`` and ``trainval`` and 0 for the others.

    Returns:
        Sequences in the order of the list. Leading frames without the target are left out (``Sequence.offset`` says how many); absent
        frames have the last known box.

    Raises:
        DataError: sequences are missing, or the modality is not the benchmark's. So is whatever is wrong with an annotation. Or the
            folder is a pack of another benchmark.
    """
    layout = layout_of(benchmark)
    if is_pack(root):
        packed = open_pack(root, split=split, modality=modality, benchmark=layout.name)
        return packed if protocol is None else _of_protocol(packed, root, protocol_list(layout, split, protocol), partial=partial)
    listing = list_split(layout, root, split, protocol)
    if listing.missing and not (partial and listing.places):
        own = Path(root) / (*layout.lists.get(split, ()), "a list")[0]
        raise DataError(
            f"{root}: {len(listing.missing)} of {len(listing.names)} sequences are missing ({', '.join(listing.missing[:3])}, ...), "
            f"listed by {listing.source}. Fetch them, or list those that are there in {own}"
        )
    if min_size is None:
        min_size = layout.min_size if split in ("train", "trainval") else 0.0
    aux = auxiliary(layout, modality)
    offsets = {folder: read_offsets(layout, folder) for folder in set(listing.places.values())} if aux else {}
    sequences = []
    for name, folder in listing.places.items():
        annotation = read_annotation(Tree(folder), layout.annotations, name)
        sequences.append(open_sequence(layout, folder, annotation, aux=aux, first=offsets.get(folder, {}).get(name), min_size=min_size))
    return tuple(sequences)


def _of_protocol(packed: tuple[Sequence, ...], root: str | Path, names: tuple[str, ...], *, partial: bool) -> tuple[Sequence, ...]:
    by_name = {sequence.name: sequence for sequence in packed}
    found = tuple(by_name[name] for name in names if name in by_name)
    if not found or (len(found) < len(names) and not partial):
        missing = [name for name in names if name not in by_name]
        raise DataError(
            f"{root}: {len(missing)} of {len(names)} sequences are missing ({', '.join(missing[:3])}, ...) in the pack. Pack all of them"
        )
    return found


def auxiliary(layout: Layout, modality: Modality | None) -> tuple[Frames, ...]:
    """Where the auxiliary frames may be.

    Args:
        layout: the benchmark.
        modality: see :func:`open_benchmark`.

    Returns:
        The alternatives; none to leave the modality out.

    Raises:
        DataError: the benchmark has another modality.
    """
    if modality == "rgb":
        return ()
    if layout.name == "own":
        kind = _KINDS.get(modality or "")
        return tuple(f for f in layout.aux if kind is None or isinstance(f, EventFile) or f.kind == kind)
    if modality not in (None, layout.modality):
        raise DataError(f"modality is {modality!r}; {layout.title} has {layout.modality}, or take rgb to leave the auxiliary frames out")
    return layout.aux


def open_sequence(
    layout: Layout, folder: Path, annotation: Annotation, *, aux: tuple[Frames, ...], first: int | None = None, min_size: float = 0.0
) -> Sequence:
    """Join an annotation and the frames it is of.

    Args:
        layout: the benchmark.
        folder: that the sequence's folder is in.
        annotation: of the sequence.
        aux: where the auxiliary frames may be; none leaves the modality out.
        first: number of the first image in the sequence's recording, where the benchmark tells.
        min_size: see :func:`open_benchmark`.

    Returns:
        The sequence, from the first visible frame on.

    Raises:
        DataError: the target is never visible.
    """
    name, skip = annotation.name, annotation.leading_absent
    path = folder / layout.sequence.format(name=name, category=name.rpartition("-")[0])
    if skip == len(annotation):
        raise DataError(f"{path}: its target is absent in all {skip} frames; expected one visible frame. Leave the sequence out")
    visible, boxes = annotation.visible[skip:], annotation.boxes[skip:]
    known = np.maximum.accumulate(np.where(visible, np.arange(len(boxes)), 0))
    frames = NativeFrames(
        path,
        name,
        rgb=layout.rgb,
        aux=aux,
        rows=len(annotation),
        skip=skip,
        first=first if layout.offsets else 0,
        more_frames=layout.more_frames,
    )
    boxes = boxes[known]
    absent = ~visible | ~(boxes[:, 2:] > min_size).all(1)
    return Sequence(name=name, frames=frames, boxes=boxes, absent=absent, attributes=annotation.attributes, offset=skip)


def read_offsets(layout: Layout, folder: Path) -> dict[str, int]:
    """How many frames of their recordings come before the first images of sequences (FE108: pair.txt).

    Args:
        layout: the benchmark.
        folder: that the sequences are in; the file is there or one folder above.

    Returns:
        Number by sequence; empty where the benchmark has no such file, or it is not there.

    Raises:
        DataError: a line is not a name and a number.
    """
    if layout.offsets is None:
        return {}
    path = next((p for p in (folder / layout.offsets, folder.parent / layout.offsets) if p.is_file()), None)
    offsets: dict[str, int] = {}
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines() if path else (), 1):
        if words := line.replace(",", " ").split():
            try:
                offsets[words[0]] = int(words[1])
            except (IndexError, ValueError):
                raise DataError(f"{path}, line {number}: {line[:60]!r}; expected the name of a sequence and a number") from None
    return offsets
