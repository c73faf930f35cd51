"""A workspace of vot-toolkit around result files: what the toolkit needs beside them to analyse them, or to run the trackers itself."""

from __future__ import annotations

import configparser
import io
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import cv2

from srft.data.video import IMAGES, natural_key
from srft.files import write_text

__all__ = ["write_workspace"]

_CHANNELS = ("color", "depth", "ir")


def write_workspace(folder: Path, stack: str, sequences: Mapping[str, Path], trackers: Mapping[str, str]) -> None:
    """Write ``config.yaml``, ``trackers.ini`` and ``sequences/`` beside ``results/``.

    A sequence is a folder of links to the benchmark's files. Where the benchmark has no file ``sequence``, one is written: without it
    the toolkit finds no depth. Sequences and trackers of former calls stay.

    Args:
        folder: of the workspace.
        stack: the toolkit's name of the experiments, such as ``vot2022/rgbd``.
        sequences: the benchmark's folders by name.
        trackers: arguments of ``srft trax``, by name.
    """
    for name, source in sequences.items():
        _link(folder / "sequences" / name, source.resolve())
    listed = sorted(place.name for place in (folder / "sequences").iterdir() if place.is_dir())
    write_text(folder / "sequences" / "list.txt", "".join(f"{name}\n" for name in listed))
    write_text(folder / "config.yaml", f"registry:\n- ./trackers.ini\nsequences: sequences\nstack: {stack}\n")
    registry = configparser.ConfigParser(interpolation=None)
    registry.read(folder / "trackers.ini")
    for name, arguments in trackers.items():
        registry[name] = {"label": name, "protocol": "trax", "command": f"srft trax {arguments}"}
    text = io.StringIO()
    registry.write(text)
    write_text(folder / "trackers.ini", text.getvalue())


def _link(place: Path, source: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        link = place / entry.name
        if not link.exists():
            link.unlink(missing_ok=True)  # it led elsewhere
            os.symlink(entry, link)
    if (place / "sequence").exists():
        return
    rows = sum(1 for line in (source / "groundtruth.txt").read_text().splitlines() if line.strip())
    properties: dict[str, object] = {"name": source.name, "fps": 30, "format": "default", "channel.default": "color", "length": rows}
    for channel in _CHANNELS:
        if (source / channel).is_dir():
            first = min((f.name for f in (source / channel).iterdir() if f.suffix.lower() in IMAGES), key=natural_key)
            properties[f"channels.{channel}"] = f"{channel}/{_pattern(first)}"
            if channel == "color":
                picture = cv2.imread(str(source / channel / first))
                if picture is not None:
                    properties |= {"height": picture.shape[0], "width": picture.shape[1]}
    write_text(place / "sequence", "".join(f"{key}={value}\n" for key, value in properties.items()))


def _pattern(name: str) -> str:
    # 00000001.jpg is number 1 of %08d.jpg.
    stem, _, suffix = name.rpartition(".")
    digits = len(list(itertools.takewhile(str.isdigit, reversed(stem))))
    return f"{stem[: len(stem) - digits]}%0{digits}d.{suffix}"
