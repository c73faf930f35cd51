"""Where each benchmark keeps what, as data: the folders and files of the official downloads, unrenamed.

In patterns ``{name}`` is the sequence and ``{category}`` its name without the number (LaSOT: airplane-1 is in airplane/).
docs/data.md shows the same as a table, with sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from srft.config import Modality

__all__ = [
    "LAYOUTS",
    "AnnotationFiles",
    "DataError",
    "EventFile",
    "FlagFile",
    "Frames",
    "Images",
    "Layout",
    "Video",
    "describe",
    "layout_of",
]

Kind = Literal["rgb", "event", "depth", "thermal"]
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov")


class DataError(ValueError):
    """Data on disk is not what its benchmark's layout says; the message names file, place, value, expectation and remedy."""


@dataclass(frozen=True, kw_only=True)
class FlagFile:
    """One absent flag a frame."""

    file: str
    absent: int
    """The value that means absent: the polarity."""
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class AnnotationFiles:
    """Where the annotation of a sequence is, below the folder that holds all sequences."""

    boxes: tuple[str, ...]
    """The first that exists is read."""
    flags: tuple[FlagFile, ...] = ()
    """All are read; a frame is absent if any says so. Without them it is absent where its box has no area."""
    aux_boxes: str | None = None
    anchors: str | None = None
    attributes: str | None = None
    attribute_names: str = ""
    """In the order of the flags in the file of attributes, with spaces between."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """A folder of images in a sequence's folder, in natural order."""

    folder: str
    kind: Kind
    triples: bool = False
    """Three grey images are the channels of one frame."""


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video file in a sequence's folder."""

    stem: str
    """The name without suffix; any of ``VIDEO_SUFFIXES``."""
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class EventFile:
    """A recording with the camera's frames and events, of which images are made when they are asked for."""

    file: str
    representation: Literal["red_blue", "three_windows"]
    """Made as the data set's authors make theirs: from the events during the exposure, or since the frame before."""


Frames = Images | Video | EventFile


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One benchmark on disk."""

    name: str
    title: str
    modality: Modality
    annotations: AnnotationFiles
    """In the data set's own folders."""
    kits: tuple[AnnotationFiles, ...] = ()
    """In evaluation kits, which hold no frames."""
    rgb: tuple[Frames, ...]
    """The first that exists in a sequence's folder is read."""
    aux: tuple[Frames, ...] = ()
    """Likewise."""
    sequence: str = "{name}"
    """A sequence's folder."""
    folders: Mapping[str, tuple[str, ...]]
    """By split, the folders below the root that may hold its sequences."""
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By split, the official list files below the root."""
    shipped: Mapping[str, str] = field(default_factory=dict)
    """By split, or ``split/protocol``, the list in ``srft/assets/splits``."""
    offsets: str | None = None
    """File in the folder of a split that says how many frames of a sequence's recording come before its first image."""
    more_frames: bool = False
    """Frames after the last annotated one are tolerated: the official data has such sequences. They are not read."""
    min_size: float = 0.0
    """Published training rule: frames whose target is not wider and higher than this are not trained on, pixels."""


_SPLITS = ("train", "val", "test")


def _lists(*folders: str) -> dict[str, tuple[str, ...]]:
    # The names that list files of prepared data sets have.
    return {
        s: (f"{s}.txt", f"{s}list.txt", *(f"{f.format(s=s)}/{n}" for f in folders for n in (f"{s}list.txt", "list.txt"))) for s in _SPLITS
    }


_VISEVENT_ATTRIBUTES = "CM ROT DEF FOC LI OV POC VC SV BC MB ARC FM NMO IV OE BOM"
_LASHER_ATTRIBUTES = "NO PO TO HO MB LI HI AIV LR DEF BC SA CM TC FL OV FM SV ARC"

FE108 = Layout(
    name="fe108",
    title="FE108",
    modality="rgbe",
    annotations=AnnotationFiles(boxes=("{name}/groundtruth_rect.txt", "{name}/groundtruth.txt")),
    rgb=(Images(folder="img", kind="rgb"),),
    aux=(
        Images(folder="inter3_stack", kind="event", triples=True),
        Images(folder="evimg", kind="event"),
        Images(folder="dvs", kind="event"),
        EventFile(file="events.aedat4", representation="three_windows"),
    ),
    folders={"train": ("train", "."), "test": ("test", ".")},
    lists=_lists("{s}"),
    shipped={"train": "fe108_train.txt", "test": "fe108_test.txt"},
    offsets="pair.txt",
)

VISEVENT = Layout(
    name="visevent",
    title="VisEvent",
    modality="rgbe",
    annotations=AnnotationFiles(boxes=("{name}/groundtruth.txt",), flags=(FlagFile(file="{name}/absent_label.txt", absent=0),)),
    kits=(
        AnnotationFiles(
            boxes=("gt_rect/{name}.txt",),
            flags=(FlagFile(file="absent/{name}.txt", absent=1),),
            attributes="att/{name}.txt",
            attribute_names=_VISEVENT_ATTRIBUTES,
        ),
    ),
    rgb=(Images(folder="vis_imgs", kind="rgb"), Images(folder="img", kind="rgb")),
    aux=(
        Images(folder="event_imgs", kind="event"),
        Images(folder="evimg", kind="event"),
        EventFile(file="{name}.aedat4", representation="red_blue"),
    ),
    folders={"train": ("train", "train_subset", "."), "test": ("test", "test_subset", ".")},
    lists=_lists("{s}", "{s}_subset"),
    shipped={"test/320": "visevent_test_320.txt", "test/218": "visevent_test_218.txt", "test/172": "visevent_test_172.txt"},
    min_size=5.0,
)

COESOT = Layout(
    name="coesot",
    title="COESOT",
    modality="rgbe",
    annotations=AnnotationFiles(boxes=("{name}/groundtruth.txt",), flags=(FlagFile(file="{name}/absent.txt", absent=0),)),
    rgb=(Images(folder="{name}_aps", kind="rgb"), Images(folder="img", kind="rgb")),
    aux=(
        Images(folder="{name}_dvs", kind="event"),
        Images(folder="evimg", kind="event"),
        EventFile(file="{name}.aedat4", representation="red_blue"),
    ),
    folders={
        "train": ("train", "Training Subset", "trainingsubset", "."),
        "test": ("test", "Testing Subset", "testingsubset", "."),
    },
    lists=_lists("{s}", "{s}ing Subset", "{s}ingsubset"),
    shipped={"test": "coesot_test.txt"},
    more_frames=True,
)

DEPTHTRACK = Layout(
    name="depthtrack",
    title="DepthTrack",
    modality="rgbd",
    annotations=AnnotationFiles(boxes=("{name}/groundtruth.txt",)),
    rgb=(Images(folder="color", kind="rgb"),),
    aux=(Images(folder="depth", kind="depth"),),
    folders={"train": ("train", "."), "test": ("test", "sequences", ".")},
    lists=_lists("{s}", "sequences"),
    shipped={"val": "depthtrack_val.txt", "test": "depthtrack_test.txt"},
    more_frames=True,
    min_size=10.0,
)

VOT_RGBD2022 = Layout(
    name="vot-rgbd2022",
    title="VOT-RGBD2022",
    modality="rgbd",
    annotations=AnnotationFiles(boxes=("{name}/groundtruth.txt",), anchors="{name}/anchor.value"),
    rgb=(Images(folder="color", kind="rgb"),),
    aux=(Images(folder="depth", kind="depth"),),
    folders={"test": ("sequences", ".")},
    lists={"test": ("sequences/list.txt", "list.txt")},
    more_frames=True,
)

_RGBT_FRAMES = {"rgb": (Images(folder="visible", kind="rgb"),), "aux": (Images(folder="infrared", kind="thermal"),)}
_RGBT_BOXES = AnnotationFiles(boxes=("{name}/visible.txt", "{name}/init.txt"), aux_boxes="{name}/infrared.txt")

LASHER = Layout(
    name="lasher",
    title="LasHeR",
    modality="rgbt",
    annotations=_RGBT_BOXES,
    kits=(AnnotationFiles(boxes=("lasher_gt/{name}.txt",), attributes="AttriSeqsTxt/{name}.txt", attribute_names=_LASHER_ATTRIBUTES),),
    folders={"train": ("trainingset", "train", "."), "test": ("testingset", "test", ".")},
    lists={
        "train": ("trainingsetList.txt", "List_for_Protocol2/trainingsetList.txt", *_lists("{s}")["train"]),
        "val": _lists()["val"],
        "test": ("testingsetList.txt", "List_for_Protocol2/testingsetList.txt", *_lists("{s}")["test"]),
    },
    shipped={"train": "lasher_train.txt", "val": "lasher_val.txt", "test": "lasher_test.txt"},
    **_RGBT_FRAMES,
)

RGBT234 = Layout(
    name="rgbt234",
    title="RGBT234",
    modality="rgbt",
    annotations=_RGBT_BOXES,
    folders={"test": (".", "RGBT234", "RGB-T234")},
    shipped={"test": "rgbt234_test.txt"},
    **_RGBT_FRAMES,
)

GOT10K = Layout(
    name="got10k",
    title="GOT-10k",
    modality="rgb",
    annotations=AnnotationFiles(boxes=("{name}/groundtruth.txt",), flags=(FlagFile(file="{name}/absence.label", absent=1),)),
    rgb=(Images(folder=".", kind="rgb"),),
    folders={"train": ("train",), "val": ("val",)},
    lists={"train": ("train/list.txt",), "val": ("val/list.txt",)},
)

LASOT = Layout(
    name="lasot",
    title="LaSOT",
    modality="rgb",
    annotations=AnnotationFiles(
        boxes=("{category}/{name}/groundtruth.txt",),
        flags=(
            FlagFile(file="{category}/{name}/full_occlusion.txt", absent=1),
            FlagFile(file="{category}/{name}/out_of_view.txt", absent=1),
        ),
    ),
    sequence="{category}/{name}",
    rgb=(Images(folder="img", kind="rgb"),),
    folders={"train": (".", "LaSOTBenchmark"), "test": (".", "LaSOTBenchmark")},
    lists={"train": ("training_set.txt",), "val": ("val.txt",), "test": ("testing_set.txt",)},
)

OWN = Layout(
    name="own",
    title="own data",
    modality="rgbe",
    annotations=AnnotationFiles(
        boxes=("{name}/boxes.csv", "{name}/boxes.txt", "{name}/groundtruth.txt"),
        flags=(FlagFile(file="{name}/absent.txt", absent=1, required=False),),
    ),
    rgb=(Images(folder="rgb", kind="rgb"), Video(stem="rgb", kind="rgb")),
    aux=tuple(frames for kind in ("event", "depth", "thermal") for frames in (Images(folder=kind, kind=kind), Video(stem=kind, kind=kind))),
    folders={split: (split, ".") for split in _SPLITS},
    lists={split: (f"{split}.txt",) for split in _SPLITS},
)

LAYOUTS = {layout.name: layout for layout in (FE108, VISEVENT, COESOT, DEPTHTRACK, VOT_RGBD2022, LASHER, RGBT234, GOT10K, LASOT, OWN)}
"""Benchmarks by name, and ``own`` for data of one's own."""


def layout_of(benchmark: str) -> Layout:
    """The layout of a benchmark.

    Args:
        benchmark: its name.

    Returns:
        Its layout.

    Raises:
        DataError: there is none of that name.
    """
    if benchmark not in LAYOUTS:
        raise DataError(f"no benchmark {benchmark!r}; expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[benchmark]


def describe(layout: Layout) -> str:
    """A layout in words.

    Args:
        layout: a benchmark's.

    Returns:
        Lines of text.
    """

    def places(frames: tuple[Frames, ...]) -> str:
        return " or ".join(
            f"{f.folder}/" if isinstance(f, Images) else f.file if isinstance(f, EventFile) else f"{f.stem}.mp4" for f in frames
        )

    lines = [f"{layout.name}: {layout.title}, {layout.modality}"]
    lines += [f"  {split:<6} {' or '.join(f'ROOT/{folder}' for folder in folders)}" for split, folders in layout.folders.items()]
    lines += [f"  in each, {layout.sequence}/ with frames in {places(layout.rgb)}"]
    if layout.aux:
        lines[-1] += f" and {places(layout.aux)}"
    lines += [f"  boxes  {' or '.join(layout.annotations.boxes)}"]
    lines += [f"  absent {flag.file}, {flag.absent} is absent" for flag in layout.annotations.flags]
    return "\n".join(lines)
