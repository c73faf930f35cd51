"""Which sequences are for training, validation and test.

The test sequences are the official ones. Validation is carved from training, because the published code validates on the test list,
which chooses checkpoints by the test.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from srft.data.benchmarks.annotations import Tree, sequence_names
from srft.data.benchmarks.layouts import DataError, Layout

__all__ = ["VAL_SHARE", "Listing", "NoSequences", "Split", "held_out", "list_split", "protocol_list", "shipped_list"]

Split = Literal["train", "val", "trainval", "test", "all"]
VAL_SHARE = 0.1
"""Of the training sequences, held out by the hash of their names where no published list of such a share exists."""


class NoSequences(DataError):
    """A split of which nothing is on the disk."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The sequences of one split."""

    names: tuple[str, ...]
    source: str
    """Where the names are from."""
    places: Mapping[str, Path]
    """The folder that a sequence's folder is in, by name; those not on the disk are left out."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Sequences that are not on the disk."""
        return tuple(name for name in self.names if name not in self.places)


def shipped_list(file: str) -> tuple[str, ...]:
    """A list of the package; their sources are in ``srft/assets/splits/README.md``.

    Args:
        file: its name.

    Returns:
        Names of sequences.
    """
    return tuple((resources.files("srft") / "assets" / "splits" / file).read_text("utf-8").split())


def protocol_list(layout: Layout, split: Split, protocol: str) -> tuple[str, ...]:
    """A published list that has a name, one of several.

    Args:
        layout: the benchmark.
        split: which part.
        protocol: of its names.

    Returns:
        Names of sequences.

    Raises:
        DataError: there is no such list.
    """
    known = [key.removeprefix(f"{split}/") for key in layout.shipped if key.startswith(f"{split}/")]
    if protocol not in known:
        raise DataError(f"{layout.title} has no {split} protocol {protocol!r}; expected one of {', '.join(known) or 'none'}")
    return shipped_list(layout.shipped[f"{split}/{protocol}"])


def held_out(names: Iterable[str], share: float = VAL_SHARE) -> tuple[str, ...]:
    """The validation part of training sequences: a sequence's name alone decides, whatever else is there.

    Args:
        names: training sequences.
        share: expected share that is held out.

    Returns:
        Those whose hash is in the lowest share, in order; the one with the lowest hash if that is none of them.
    """
    names = tuple(names)
    place = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names}
    return tuple(name for name in names if place[name] < share) or tuple(sorted(names, key=place.__getitem__)[:1])


def list_split(layout: Layout, root: str | Path, split: Split, protocol: str | None = None) -> Listing:
    """The sequences of a split and where they are.

    Names are from the protocol's list; else the data set's own list file below the root; else the list in the package, if any of its
    sequences is there; else the folders of the split. ``val`` is the data set's or the published part of training, else
    :func:`held_out`; ``train`` is training without it, ``trainval`` with it, ``all`` every sequence there is.

    Args:
        layout: the benchmark.
        root: its folder.
        split: which part.
        protocol: which of several published test lists (VisEvent: 320, 218, 172).

    Returns:
        The listing; what is not on the disk is in ``missing``.

    Raises:
        DataError: there is no such folder or protocol, or training or validation sequences are test sequences too.
        NoSequences: nothing of the split is on the disk.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the root of {layout.title}")
    if protocol is not None:
        return _located(layout, root, "test", protocol_list(layout, split, protocol), f"{split} protocol {protocol}")
    if split == "all":
        names = dict.fromkeys(name for folder in _bases(layout, root) for name in _inside(layout, folder))
        return _located(layout, root, "all", tuple(names), f"folders in {root}")
    if split == "test":
        names, source = _official(layout, root, "test")
        return _located(layout, root, "test", names, source)
    try:
        trained, source = _official(layout, root, "train")
    except NoSequences:
        trained, source = (), ""
        if split != "val" or not _validation(layout, root, trained)[0]:
            raise
    tested = _tested(layout, root)
    val, val_source = _validation(layout, root, trained)
    for kind, part, part_source in (("training", trained, source), ("validation", val, val_source)):
        own_split = "train" if part is trained else "val"
        if both := [name for name in part if name in tested and _same(layout, root, name, own_split, "test")]:
            raise DataError(
                f"{layout.title}: {len(both)} {kind} sequences are test sequences ({both[0]}, ...), from {part_source}. "
                "Choosing on them would be choosing on the test: take them out of the list; without val.txt validation is carved from train"
            )
    if split == "val":
        return _located(layout, root, "val", val, val_source)
    if split == "train":
        out = {name for name in val if _same(layout, root, name, "train", "val")}
        trained, source = tuple(name for name in trained if name not in out), f"{source}, without {val_source}"
    return _located(layout, root, "train", trained, source)


def _same(layout: Layout, root: Path, name: str, one: str, other: str) -> bool:
    # Whether a name in two splits is that of one sequence, as in all benchmarks. Folders of own data may number theirs alike: there,
    # it is if the annotation is the same too.
    first, second = (_place(layout, root, split, name) for split in (one, other))
    if layout.name != "own" or first is None or second is None or first == second:
        return True
    texts = [[Tree(place).text(file.format(name=name)) for file in layout.annotations.boxes] for place in (first, second)]
    return texts[0] == texts[1]


def _validation(layout: Layout, root: Path, trained: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    own = _list_file(layout, root, "val")
    if own is not None:
        return own
    for folder in layout.folders.get("val", ()):
        if folder != "." and (names := _inside(layout, root / folder)):
            return names, f"folders in {root / folder}"
    if "val" in layout.shipped:
        known = set(trained)
        if names := tuple(name for name in shipped_list(layout.shipped["val"]) if name in known):
            return names, layout.shipped["val"]
    return held_out(trained), f"{VAL_SHARE:.0%} of train by hash of the name"


def _official(layout: Layout, root: Path, split: str) -> tuple[tuple[str, ...], str]:
    if split not in layout.folders:
        raise NoSequences(f"{layout.title} has no split {split!r}; expected one of {', '.join(layout.folders)}")
    if (own := _list_file(layout, root, split)) is not None:
        return own
    for key, file in layout.shipped.items():
        if key.partition("/")[0] == split:
            names = shipped_list(file)
            if any(_place(layout, root, split, name) for name in names):
                return names, file
    for folder in layout.folders[split]:
        if folder != "." and (names := _inside(layout, root / folder)):
            return names, f"folders in {root / folder}"
    if "." in layout.folders[split] and (names := _inside(layout, root)):
        others = [other for other in layout.folders if other not in (split, "val")]
        if not others:
            return names, f"folders in {root}"
        tested = _tested(layout, root)
        left = tuple(name for name in names if name not in tested or not _same(layout, root, name, split, "test"))
        if split == "train" and (tested or layout.name == "own") and left:
            return left, f"folders in {root}"
    where = [*layout.lists.get(split, ()), *(f"{folder}/" for folder in layout.folders[split] if folder != ".")]
    raise NoSequences(
        f"{root}: no {split} sequences of {layout.title}; expected one of {', '.join(where) or 'its sequences'}. "
        "Is this the right folder? srft data layouts shows what is expected"
    )


def _tested(layout: Layout, root: Path) -> set[str]:
    # Every sequence that is known to be for testing, on the disk or not.
    tested = {name for key, file in layout.shipped.items() if key.startswith("test") for name in shipped_list(file)}
    if (own := _list_file(layout, root, "test")) is not None:
        tested |= set(own[0])
    return tested.union(*(_inside(layout, root / folder) for folder in layout.folders.get("test", ()) if folder != "."))


def _list_file(layout: Layout, root: Path, split: str) -> tuple[tuple[str, ...], str] | None:
    for file in layout.lists.get(split, ()):
        path = root / file
        if path.is_file():
            lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
            # What follows the name is passed over, unless it is a part of the name.
            words = {line: re.split(r"[\s,]", line)[0] for line in lines}
            names = tuple(
                dict.fromkeys(line if line != word and _place(layout, root, split, line) else word for line, word in words.items())
            )
            if not names:
                raise DataError(f"{path}: empty; expected one sequence a line")
            return names, str(path)
    return None


def _bases(layout: Layout, root: Path, split: str | None = None) -> list[Path]:
    wanted = layout.folders.get(split or "", ())
    folders = dict.fromkeys([*wanted, *(folder for places in layout.folders.values() for folder in places), "."])
    return [root / folder for folder in folders if (root / folder).is_dir()]


def _inside(layout: Layout, folder: Path) -> tuple[str, ...]:
    return sequence_names(layout.annotations, Tree(folder)) if folder.is_dir() else ()


def _place(layout: Layout, root: Path, split: str, name: str) -> Path | None:
    sequence = layout.sequence.format(name=name, category=name.rpartition("-")[0])
    return next((base for base in _bases(layout, root, split) if (base / sequence).is_dir()), None)


def _located(layout: Layout, root: Path, split: str, names: tuple[str, ...], source: str) -> Listing:
    bases = _bases(layout, root, split)
    places = {}
    for name in names:
        sequence = layout.sequence.format(name=name, category=name.rpartition("-")[0])
        if (base := next((base for base in bases if (base / sequence).is_dir()), None)) is not None:
            places[name] = base
    return Listing(names=names, source=source, places=places)
