"""Synthetic sequences written as the benchmarks publish theirs, so that every reader can be tried on a real tree.

Folder, file and list names, image types, number formats, index origins and the polarity of absent flags are the official ones, traps
included: names that differ between sequences of one benchmark, numbering that starts anywhere, recordings that some sequences lack.
"""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np

from srft.config import Modality
from srft.data.events import Recording, event_image
from srft.data.events.aedat4_writer import write_aedat4
from srft.data.synthetic import Capture
from srft.data.synthetic.cameras import FRAME_INTERVAL_US, frame_ends
from srft.data.thermal import thermal_image
from srft.files import write_text

__all__ = ["LAYOUTS", "Benchmark", "Layout", "infrared_boxes", "write_native"]

Benchmark = Literal["fe108", "visevent", "coesot", "depthtrack", "vot-rgbd2022", "lasher", "rgbt234"]
NativeSplit = Literal["train", "test"]
JPEG_QUALITY = 95
ANCHOR_EVERY = 50
FE108_EXPOSURE_US = 2_000
FE108_OFFSET = 3
"""Frames in a recording of FE108 before the first annotated one, as its pair.txt says."""


def write_native(
    benchmark: Benchmark,
    root: str | Path,
    captures: Iterable[Capture],
    *,
    split: NativeSplit = "test",
    on_sequence: Callable[[], object] | None = None,
) -> list[Path]:
    """Write sequences in a benchmark's official layout. A sequence folder is whole or absent; list files come last.

    Lists keep the sequences of earlier calls that are there.

    Args:
        benchmark: whose layout.
        root: folder of the benchmark; made if need be.
        captures: recordings of the benchmark's modality; their names become the sequences'.
        split: train or test; only test for VOT-RGBD2022 and RGBT234.
        on_sequence: called after each sequence.

    Returns:
        The sequences' folders, in order.

    Raises:
        ValueError: the benchmark is unknown or has no such split, a recording is of another modality, or a sequence's folder exists.
    """
    if benchmark not in LAYOUTS:
        raise ValueError(f"benchmark is {benchmark!r}; expected one of {get_args(Benchmark)}")
    layout, root = LAYOUTS[benchmark], Path(root)
    if split not in layout.folders:
        raise ValueError(f"{benchmark} has no split {split!r}; expected one of {tuple(layout.folders)}")
    parent = root / layout.folders[split]
    written: list[Path] = []
    for number, capture in enumerate(captures):
        if capture.modality != layout.modality:
            raise ValueError(
                f"{capture.name} is {capture.modality}; {benchmark} has {layout.modality}: record it with modality={layout.modality!r}"
            )
        folder = parent / capture.name
        if folder.exists():
            raise ValueError(f"{folder}: exists already; choose another root, or delete the folder")
        parent.mkdir(parents=True, exist_ok=True)
        beside = parent / f".{capture.name}.{uuid.uuid4().hex}"
        try:
            layout.write(capture, beside, number)
            os.replace(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        written.append(folder)
        if on_sequence:
            on_sequence()
    for name, line in layout.lists.get(split, {}).items():
        earlier = (root / name).read_text().splitlines() if (root / name).is_file() else []
        kept = [old for old in earlier if old.strip() and (parent / old.partition("\t")[0]).is_dir()]
        lines = dict.fromkeys([*kept, *(line.format(name=folder.name) for folder in written)])
        write_text(root / name, "".join(f"{one}\n" for one in lines))
    for name, text in layout.files.items():
        write_text(root / name, text)
    return written


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a benchmark lies on disk."""

    modality: Modality
    folders: dict[NativeSplit, str]
    """Where the sequences of a split are, below the root."""
    write: Callable[[Capture, Path, int], None]
    """Writes one sequence into a folder; the number varies what differs between sequences."""
    lists: dict[NativeSplit, dict[str, str]]
    """List files of a split, below the root, and their lines."""
    files: dict[str, str]
    """Other files below the root."""
    decimals: int
    """Of the numbers in annotations."""


def infrared_boxes(capture: Capture) -> np.ndarray:
    """RGBT234's second annotation: made apart from the first, so that most rows differ from it by a pixel.

    Args:
        capture: whose boxes.

    Returns:
        ``[T, 4]`` ltwh; left and top of most rows are moved by one pixel.
    """
    boxes = np.rint(capture.boxes)
    moves = np.random.default_rng(zlib.crc32(capture.name.encode())).integers(-1, 2, (len(boxes), 2))
    boxes[:, :2] = np.maximum(boxes[:, :2] + moves, 0)
    return boxes


def _images(folder: Path, names: Iterable[str], images: Iterable[np.ndarray]) -> None:
    # RGB or one channel; the suffix decides the type.
    folder.mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        path = folder / name
        pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []):
            raise OSError(f"{path}: the image could not be written")


def _rows(path: Path, boxes: np.ndarray, decimals: int, absent: np.ndarray | None = None, gone: str = "0,0,0,0") -> None:
    lines = [",".join(f"{v:.{decimals}f}" for v in box) for box in boxes]
    if absent is not None:
        lines = [gone if away else line for line, away in zip(lines, absent, strict=True)]
    path.write_text("".join(f"{line}\n" for line in lines))


def _column(path: Path, values: Iterable[object]) -> None:
    path.write_text("".join(f"{value}\n" for value in values))


def _numbered(pattern: str, count: int, first: int) -> list[str]:
    return [pattern.format(first + i) for i in range(count)]


def _event_frames(capture: Capture) -> list[np.ndarray]:
    # The exposure is taken to last the whole frame interval.
    assert capture.raw is not None
    return [event_image(capture.raw[a:b], *capture.rgb.shape[1:3]) for a, b in pairwise(capture.cuts)]


def _recording(capture: Capture, *, before: int = 0, exposure_us: int | None = None) -> Recording:
    # Grey frames and events on one clock. `before` frames of nothing come first, as a camera runs before a sequence is cut out. What
    # a frame shows happens until the end of its window: its exposure lasts the whole window, or is short and around that end.
    assert capture.raw is not None
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in capture.rgb])
    frames = np.concatenate([np.zeros((before, *grey.shape[1:]), np.uint8), grey])
    events = capture.raw.copy()
    events["t"] += before * FRAME_INTERVAL_US
    ends = frame_ends(len(frames))
    exposures = np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)
    if exposure_us is not None:
        exposures = np.stack([ends - exposure_us // 2, ends + exposure_us // 2], 1)
    return Recording(frames=frames, frame_times=exposures.sum(1) // 2, events=events, exposures=exposures)


def _fe108(capture: Capture, folder: Path, number: int) -> None:
    _images(folder / "img", _numbered("{:04d}.jpg", len(capture.rgb), 1), capture.rgb)
    write_aedat4(folder / "events.aedat4", _recording(capture, before=FE108_OFFSET, exposure_us=FE108_EXPOSURE_US))
    _rows(folder / "groundtruth_rect.txt", capture.boxes, LAYOUTS["fe108"].decimals, capture.absent)


def _visevent(capture: Capture, folder: Path, number: int) -> None:
    names = _numbered(f"frame{{:04d}}.{'png' if number % 4 == 3 else 'bmp'}", len(capture.rgb), (0, 17, 1)[number % 3])
    _images(folder / "vis_imgs", names, capture.rgb)
    _images(folder / "event_imgs", names, _event_frames(capture))
    if number % 3 != 2:  # about a third of the sequences were published without their recording
        write_aedat4(folder / f"{capture.name}.aedat4", _recording(capture))
    _rows(folder / "groundtruth.txt", capture.boxes, LAYOUTS["visevent"].decimals, capture.absent)
    _column(folder / "absent_label.txt", (~capture.absent).astype(int))


def _coesot(capture: Capture, folder: Path, number: int) -> None:
    names = _numbered(f"frame{{:04d}}.{'png' if number % 2 else 'bmp'}", len(capture.rgb), 0)
    _images(folder / f"{capture.name}_aps", names, capture.rgb)
    _images(folder / f"{capture.name}_dvs", names, _event_frames(capture))
    write_aedat4(folder / f"{capture.name}.aedat4", _recording(capture))
    _rows(folder / "groundtruth.txt", capture.boxes, LAYOUTS["coesot"].decimals, capture.absent)
    _column(folder / "absent.txt", (~capture.absent).astype(int))
    (folder / "start_end_index.txt").write_text(f"1,{len(capture.rgb)}\n")


def _depth_folders(capture: Capture, folder: Path) -> None:
    assert capture.raw is not None
    _images(folder / "color", _numbered("{:08d}.jpg", len(capture.rgb), 1), capture.rgb)
    _images(folder / "depth", _numbered("{:08d}.png", len(capture.rgb), 1), capture.raw)


def _depthtrack(capture: Capture, folder: Path, number: int) -> None:
    _depth_folders(capture, folder)
    _rows(folder / "groundtruth.txt", capture.boxes, LAYOUTS["depthtrack"].decimals, capture.absent, "nan,nan,nan,nan")


def _vot(capture: Capture, folder: Path, number: int) -> None:
    _depth_folders(capture, folder)
    count, height, width, _ = capture.rgb.shape
    _rows(folder / "groundtruth.txt", capture.boxes, LAYOUTS["vot-rgbd2022"].decimals, capture.absent, "nan,nan,nan,nan")
    # Forward from anchors of the first half, backward from those of the second; never from a frame without target.
    anchors = np.zeros(count, int)
    wanted = [*range(0, count, ANCHOR_EVERY), count - 1]
    visible = np.flatnonzero(~capture.absent)
    for frame in wanted:
        nearest = int(visible[np.abs(visible - frame).argmin()])
        anchors[nearest] = 1 if 2 * nearest < count else -1
    _column(folder / "anchor.value", anchors)
    _column(folder / "full-occlusion.tag", capture.absent.astype(int))
    properties = {
        "channels.color": "color/%08d.jpg",
        "channels.depth": "depth/%08d.png",
        "channel.default": "color",
        "format": "default",
        "fps": "30",
        "height": height,
        "length": count,
        "name": capture.name,
        "width": width,
    }
    _column(folder / "sequence", [f"{key}={value}" for key, value in properties.items()])


def _infrared(capture: Capture) -> list[np.ndarray]:
    assert capture.raw is not None
    return [thermal_image(frame) for frame in capture.raw]


def _lasher(capture: Capture, folder: Path, number: int) -> None:
    count = len(capture.rgb)
    visible, infrared = (("v{:03d}.jpg", 0), ("i{:03d}.jpg", 0)) if number % 2 == 0 else (("{:06d}.jpg", 1), ("{:06d}.jpg", 1))
    _images(folder / "visible", _numbered(visible[0], count, visible[1]), capture.rgb)
    _images(folder / "infrared", _numbered(infrared[0], count, infrared[1]), _infrared(capture))
    for name in ("visible.txt", "infrared.txt", "init.txt"):
        _rows(folder / name, capture.boxes, LAYOUTS["lasher"].decimals, capture.absent)


def _rgbt234(capture: Capture, folder: Path, number: int) -> None:
    count = len(capture.rgb)
    _images(folder / "visible", _numbered("{:05d}v.jpg", count, 1), capture.rgb)
    _images(folder / "infrared", _numbered("{:05d}i.jpg", count, 1), _infrared(capture))
    # Without a sign for absence: the box stays.
    _rows(folder / "visible.txt", capture.boxes, LAYOUTS["rgbt234"].decimals)
    _rows(folder / "infrared.txt", infrared_boxes(capture), LAYOUTS["rgbt234"].decimals)
    _rows(folder / "init.txt", capture.boxes, LAYOUTS["rgbt234"].decimals)


LAYOUTS: dict[str, Layout] = {
    "fe108": Layout(
        modality="rgbe",
        folders={"train": "train", "test": "test"},
        write=_fe108,
        lists={split: {f"{split}/pair.txt": f"{{name}}\t{FE108_OFFSET}"} for split in get_args(NativeSplit)},
        files={},
        decimals=2,
    ),
    "visevent": Layout(
        modality="rgbe",
        folders={"train": "train", "test": "test"},
        write=_visevent,
        lists={split: {f"{split}/{split}list.txt": "{name}"} for split in get_args(NativeSplit)},
        files={},
        decimals=2,
    ),
    "coesot": Layout(
        modality="rgbe",
        folders={"train": "train", "test": "test"},
        write=_coesot,
        lists={split: {f"{split}/list.txt": "{name}"} for split in get_args(NativeSplit)},
        files={},
        decimals=4,
    ),
    "depthtrack": Layout(modality="rgbd", folders={"train": "train", "test": "test"}, write=_depthtrack, lists={}, files={}, decimals=1),
    "vot-rgbd2022": Layout(
        modality="rgbd",
        folders={"test": "sequences"},
        write=_vot,
        lists={"test": {"sequences/list.txt": "{name}"}},
        files={"config.yaml": "registry:\n- ./trackers.ini\nstack: vot2022/rgbd\n", "trackers.ini": "# one section per tracker\n"},
        decimals=3,
    ),
    "lasher": Layout(
        modality="rgbt",
        folders={"train": "trainingset", "test": "testingset"},
        write=_lasher,
        lists={split: {f"{split}ingsetList.txt": "{name}"} for split in get_args(NativeSplit)},
        files={},
        decimals=0,
    ),
    "rgbt234": Layout(modality="rgbt", folders={"test": ""}, write=_rgbt234, lists={}, files={}, decimals=0),
}
"""Official layouts; where a benchmark is published in parts, the root holds them side by side."""
